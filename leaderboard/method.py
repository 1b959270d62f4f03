"""How everything is computed, in our own words; static text, the only Markdown of the pages."""

SECTIONS = (
    (
        "Robust accuracy",
        r"""
**Robust accuracy** is the share of the board's fixed examples that *no verified attempt of any
attack* broke. It is counted per example: if one attack breaks the first half and another the second,
the figure is 0, not one half. An example that is already wrong on the clean image counts as broken.

$$\text{robust} = \frac{1}{n}\sum_{i=1}^{n}\ \prod_{a}\ \mathbf{1}[\,f(x_i)=y_i \ \text{and}\ a \text{ did not break } i\,]$$

`required` is the same figure over the required attacks alone.
""",
    ),
    (
        "Intervals",
        r"""
Every figure comes with **k of n** and a 95 % **Wilson interval**:

$$\frac{1}{1+z^2/n}\left(\hat p+\frac{z^2}{2n}\ \pm\ z\sqrt{\frac{\hat p(1-\hat p)}{n}+\frac{z^2}{4n^2}}\right),\qquad \hat p = k/n,\ z = 1.96$$

0 of 500 is therefore not "0 %" but "at most 0.8 %". The interval says how far the figure would move
on other images of the same kind. It does not say what a stronger attack would find.
""",
    ),
    (
        "Ranks and ties",
        r"""
Two defenses are compared on the *same* examples. Only the examples on which they disagree speak:
an **exact McNemar test** asks whether the disagreements could be a fair coin, and **Holm's** correction
keeps the 5 % over all comparisons of one defense.

A rank is a **range**: from one more than the number of defenses that are significantly better, to the
number of all less those significantly worse. Defenses of one **tie group** cannot be told apart with
these examples. Inside a group they stand by their point estimate, which is not a result.
""",
    ),
    (
        "Who has no rank",
        r"""
- **Provisional**: a required attack has not been played to its end. Fewer attacks can only flatter.
- **Invalid**: the row contradicts itself (a certificate that an attack broke, answers that change
  from call to call without being declared).
- **Evidence only**: the whole board is not for ranking, for instance the unbounded one.
""",
    ),
    (
        "What the referee does",
        r"""
An attack only *offers* images. The referee starts from the stored clean image, checks in float64 that
the offer is finite, inside the pixel box and inside the perturbation set, and asks a **fresh copy** of
the defense that has never seen the attack. It refuses, it never repairs. An offer outside the set
breaks nothing; how many there were is shown.

*Fragile* wins have a margin under 1e-4 of the logit scale. The *8-bit* column judges again after
each pixel was rounded to k/255 towards the clean one.
""",
    ),
    (
        "Signs of masked gradients",
        r"""
A high figure may only mean that the attack could not see the slope. Each sign has its numbers and one
of three states: **▲ raised**, **✓ clear**, **○ not tested**. The last two are different facts. A row
with a raised sign is *suspect*; its figure is an upper bound that probably lies too high.
""",
    ),
    (
        "Claims",
        r"""
A claim is what the authors wrote. It **holds** where it lies inside the interval of what was measured
here, and is **below the claim** where the whole interval lies under it. The data set, the network and
the examples may differ from those of the paper: the claim is compared under the threat model that it
names, and nowhere else.
""",
    ),
    (
        "What a figure here cannot say",
        r"""
Measured robustness is an upper bound: the next attack may be better. Only a **certified** figure is a
lower bound, and it holds for its threat model alone. Nothing here speaks about other perturbations,
other data, or an attacker with another goal.
""",
    ),
    (
        "Disputing a figure",
        r"""
Every cell can be played again: `bench reproduce CELL`. A better attack is the best dispute:
`bench new attack mine`, then `bench run --attack mine`, and the figure falls by itself.
""",
    ),
)
