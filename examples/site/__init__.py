"""The site of the course: pages that a browser shows from a disk or from a server, without a net.

    python -m examples.site build/site
    python -m examples.site build/site --repository OWNER/NAME

It has a start page, the notebooks of the course with the outputs that are stored in them, the
gallery, the guides, and the reference. Nothing on a page comes from elsewhere: formulas become
MathML when the site is made, and no script, style or font is loaded from a network. The notebooks
are not run.

In reading order: `links` leads from a file of the repository to a page, `markdown` and `notebook`
make HTML, `gallery` reads the docstrings of the examples, `hosts` adds a cell with which Colab and
Binder can run a notebook, `reference` calls pdoc, and `build` makes the pages with `template`.
"""
