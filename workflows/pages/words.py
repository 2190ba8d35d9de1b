"""What the report teaches, a paragraph of HTML a section. Nothing in here comes from data."""

DATA = """The model has seen these, and nothing else: whatever it draws, it has from here."""

FORWARD = """Training damages real pictures on purpose. At time <i>t</i> a picture <i>x</i><sub>0</sub> has become
<span class="formula"><i>x<sub>t</sub></i> = √ᾱ<i><sub>t</sub></i> <i>x</i><sub>0</sub> + √(1 &minus;
ᾱ<i><sub>t</sub></i>) ε</span>, a little less of itself and a little more of the noise ε; ᾱ<i><sub>t</sub></i> falls
from 1 to about 0, and at the end nothing of the picture is left. No network is in this: it is arithmetic."""

TRAINING = """A network is shown <i>x<sub>t</sub></i> and <i>t</i> and has to tell the noise from the picture; the loss
is how wrong it is. How hard that is depends on how much noise there is, so each quarter of the times has a curve of its
own: they say where in the chain there is still something to learn. That the curves level off does not mean that the
pictures do."""

REVERSE = """Drawing runs the other way. It begins with nothing but noise; the network guesses the picture in it, the
sampler takes a small step towards that guess, and the next guess is a better one. Large shapes settle first, then
details."""

SAMPLES = """None of these was picked by hand: they are the first of the run, each from a seed of its own. Look for what
is not a whole thing, and for what comes again and again."""

METRICS = """Samples and training data are compared as two clouds of points. Every number depends on how many samples it
is of (n), so compare it only with numbers of as many; the interval says where it would land for other samples of the
same model. Real pictures that training never saw show what a perfect model would get."""

NEIGHBOURS = """Above, samples; below each, the training picture that is nearest to it. A model that has learned draws
what is like its neighbour and yet not the same; one that has memorised draws the neighbour."""

LINEAGE = """Each of these was made of the one before and names it, so every sample can be followed back to the bytes of
the pictures behind it."""

SETTINGS = """What these pictures depend on, and how long they took."""

COMMANDS = """Everything here is in MLflow, and comes out with one command."""

NONE = {
    "forward": "This run has no picture of the forward process.",
    "training": "MLflow has no loss curve of the training run.",
    "reverse": "This run has no picture of the reverse process.",
    "samples": "This run has no grid of samples.",
    "metrics": "These samples were not judged.",
    "neighbours": "This run has no picture of the nearest training pictures.",
}
"""said where there is nothing to show"""
