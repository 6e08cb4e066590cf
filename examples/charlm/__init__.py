"""A character transformer learns from Python's manual, and by LoRA to write like Shakespeare.

A transformer with 430,000 parameters reads the manual, 64 characters at a time, and learns to
predict the next character after each of them. Then its own text looks like the manual. Next, an
adapter with a tenth of the parameters learns from 30 sonnets, while the model is frozen. Then the
text looks like verse. With the adapter off, the model and its text are exactly the same as before.

You will see the loss of each model on held-out parts of both texts, in nats per character, and the
text that each model writes. It takes a minute, and draws charlm.png.

    python -m examples.charlm

These are the steps:

    rng = np.random.default_rng(0)
    manual, sonnets = texts.manual(), texts.sonnets()
    alphabet = Alphabet(*manual, *sonnets)
    model = CharacterModel(len(alphabet), Sizes(), rng)
    train(model, alphabet.encode(manual.known), Schedule(1600, lr=3e-3, batch_size=8), rng)
    print(write(model, alphabet, "When ", 300, rng))
    lora.attach(model, demo.CONFIG, adapter="sonnets", rng=rng)
    train(model, alphabet.encode(sonnets.known), Schedule(200, lr=5e-3, batch_size=16), rng)
    print(write(model, alphabet, "When ", 300, rng))
    lora.switch(model)                                      # switches to no adapter

In reading order: `texts` loads the texts, `model` is the transformer, `training` trains it,
`writing` lets it write, `counting` is the simplest baseline, `demo` runs all steps, and `picture`
draws the results.
"""

from examples.charlm.demo import main as main
