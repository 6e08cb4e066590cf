"""A character transformer learns from Python's manual, and by LoRA to write like Shakespeare.

A transformer of 430,000 numbers reads the manual, 64 characters at a time, and learns to say after
each of them which comes next. What it writes is manual-like. Then an adapter, a tenth of its size,
reads 30 sonnets beside the frozen model, and what it writes looks like verse. Switched off, it
leaves the very model from before, which writes the very text from before.

You will see how surprised each is by parts of both texts that it has not read, in nats for each
character, and what each writes. It takes a minute, and draws charlm.png.

    python -m examples.charlm

Step by step it is:

    rng = np.random.default_rng(0)
    manual, sonnets = texts.manual(), texts.sonnets()
    alphabet = Alphabet(*manual, *sonnets)
    model = CharacterModel(len(alphabet), Sizes(), rng)
    train(model, alphabet.encode(manual.known), Schedule(1600, lr=3e-3, batch_size=8), rng)
    print(write(model, alphabet, "When ", 300, rng))
    lora.attach(model, demo.CONFIG, adapter="sonnets", rng=rng)
    train(model, alphabet.encode(sonnets.known), Schedule(200, lr=5e-3, batch_size=16), rng)
    print(write(model, alphabet, "When ", 300, rng))
    lora.switch(model)                                      # no adapter: the base again

In reading order: `texts` is what is read, `model` reads, `training` teaches, `writing` lets it
write, `counting` is the simplest thing to be compared with, `demo` does all of it, `picture` draws.
"""

from examples.charlm.demo import main as main
