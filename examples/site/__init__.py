"""The site of the course: pages for a browser, from a disk or a server, without a network.

    python -m examples.site build/site
    python -m examples.site build/site --repository OWNER/NAME

It has a start page, the notebooks of the course with their stored outputs, the gallery, the guides,
and the reference. Pages load no script, style or font from a network, and formulas become MathML
when the site is made. The notebooks are not run.

In reading order: `links` finds the page of a file of the repository, `markdown` and `notebook` make
HTML, `gallery` reads the docstrings of the examples, `hosts` adds the cell that a notebook needs on
Colab and Binder, `reference` calls pdoc, and `build` makes the pages with `template`.
"""
