"""The main demo: adapt a pretrained network to data that it has never seen, by LoRA and without.

A network learns to complete handwritten digits: from the upper half of an image it predicts the
lower half. It has never seen a seven. Then it gets 40 of them, and is adapted in three ways: not at
all, by training all of its weights, or by LoRA: training small updates beside two of its layers.

You will see a table of what each way costs and how well it does on other sevens (and on the other
digits, which adapting makes it forget); whether the differences are larger than the noise between
random splits; what merging the update changes; and a picture of all that. It takes some forty
seconds, and draws lora_regression.png.

    python -m examples.lora_regression
    python -m examples.lora_regression --rank 2 --alpha 4 --optimizer sgd --out rank2.png
    python -m examples.lora_regression --csv houses.csv --target price --shift-by year

In reading order: `data` makes the two groups, `demo` pretrains and adapts, `report` says what came
of it, `picture` draws.
"""

from examples.lora_regression.demo import main as main
