"""One network, two adapters: it reads inverted and rotated digits too, and forgets nothing.

A network learns to read handwritten digits, 8 x 8 pixels each. It cannot read them white on black,
nor on their side. Fine-tuning teaches it either, and it forgets what it knew. An adapter teaches
the same with a tenth of the numbers, beside a base that stays as it is: with both adapters switched
off it is what it was, to the bit.

You will see a table, and a picture of it: what each network reads of the digits of all three kinds
that it has not been trained on, how many numbers it trained, and how many bytes they are in a file.
It takes a minute, and draws digits.png.

    python -m examples.digits

In reading order: `data` makes the three kinds of digits, `demo` pretrains and adapts, `report` says
what came of it, `picture` draws.
"""

from examples.digits.demo import main as main
