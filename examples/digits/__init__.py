"""One network with two adapters also reads inverted and rotated digits, and forgets nothing.

A network learns to read handwritten digits of 8 x 8 pixels. It cannot read them if they are
inverted (white on black) or rotated. Full fine-tuning teaches it one of these kinds, but then it
forgets what it knew. An adapter teaches the same with a tenth of the parameters and does not change
the base: with both adapters off, the outputs are the same as before, bit for bit.

You will see a table, and a picture of it: the accuracy of each network on test digits of all three
kinds, the number of trained parameters, and the size of their file. It takes a minute, and draws
digits.png.

    python -m examples.digits

With `--cnn`, a small convolutional network and an MLP with eight times as many parameters train on
upright digits for the same time. The CNN reads more of the test digits, and many more if they are
shifted by a pixel. The picture digits_cnn.png shows its filters, the feature maps of a digit, and
the digits that each network misreads.

    python -m examples.digits --cnn

In reading order: `data` makes the three kinds of digits, `demo` pretrains and adapts, `report`
measures the results, `picture` draws them; `equal_time` trains a CNN and an MLP, and
`equal_time_picture` draws their results.
"""

from examples.digits.demo import main as main
