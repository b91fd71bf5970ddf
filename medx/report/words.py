"""The report's standing words: what each section answers, and the limits."""

SECTIONS: dict[str, tuple[str, str]] = {
    "claim": (
        "The claim",
        "The published report's figure beside the majority class of the same test images, and beside this work at a "
        "true ε. An accuracy that equals the majority's says that the model may have learnt nothing.",
    ),
    "convergence": (
        "Efficacy and convergence",
        "Five rounds, as published, and as many as are useful. The whole run's noise is planned before its first "
        "round, so more rounds mean more noise in each and not more ε.",
    ),
    "utility": (
        "Privacy and utility",
        "Every setting over several seeds, beside the majority class, hospitals that train alone, and all records in "
        "one place. Nothing is set in bold: where two modes differ by more than noise, the paired test says so.",
    ),
    "overhead": ("What privacy costs", "Time and bytes, on the machine that the appendix names."),
    "budget": (
        "Privacy budget by round",
        "What has been spent after each round. One accountant composes all of a run's steps; it never starts afresh.",
    ),
    "hospitals": (
        "Hospitals and classes",
        "The same budget when hospitals see different patients: Dirichlet(0.1) gives most hospitals mostly one class, "
        "IID gives all the same mix.",
    ),
    "calibration": (
        "Calibration and errors",
        "Whether the model's probabilities can be believed, and what it confuses.",
    ),
    "statement": ("Privacy statement", "As each mode's run states it, from the steps that were executed."),
    "limits": ("Limits", "What this report does not show."),
    "appendix": ("Appendix: runs", "Every number above names its runs; this is what they are."),
}

LIMITS = (
    "Tuning is not covered by ε: presets were chosen on validation among 72 settings "
    "(`experiments/frontier/protocol.md`), after about 110 in development. Rows that say 'chosen privately' pay for "
    "their own choice among six, not for that.",
    "The phantoms are drawn by a program that reads no record, but a few of its numbers were adjusted by hand after "
    "looking at validation scores and, for a dozen variants, at training labels.",
    "MedMNIST sets besides the two here were not run: their files were not at hand. The path is tested on a synthetic "
    "file of BloodMNIST's layout.",
    "ε protects one image. A patient with several images is protected less.",
    "Validation and test metrics, and metrics by hospital, are computed by the study on data it holds; ε does not "
    "cover them.",
    "Runs use noise drawn from the seed, so that they can be made again. A model for release needs "
    "`privacy.noise_source=system`.",
    "Intervals over seeds speak of retraining on these images, bootstrap intervals of other test images of the same "
    "kind. Neither speaks of other hospitals, scanners or patients.",
    "Hospitals are simulated by dealing one public data set. Images of 28 pixels are not what a radiologist reads, and "
    "nothing here is fit for diagnosis.",
    "With few seeds the t interval is wide (4.3 standard errors at three), and only large differences can be shown.",
)

FIRST = "To know first"
