"""How to read the page, and what its numbers do not show."""

from __future__ import annotations

READING = (
    (
        "Site",
        "where in the model the state was read. resid.l enters block l; the last one leaves the last block, "
        "before any final norm; embed is the embedding of the piece alone.",
    ),
    (
        "Baselines",
        "prior knows only how frequent the labels are; word_type gives each word the label it most often has "
        "in train; of whole texts, text_length knows how long they are, bag_of_words and tfidf which words they have. "
        "None reads a hidden state, so a claim about states has to beat the best of them.",
    ),
    (
        "Control task",
        "the same rows, classes and splits, with labels that mean nothing: each key (a word type, or the "
        "field named) drew its label by lot. A probe can be good at it only by memorising keys. Its ceiling is "
        "what memory of every key of train would reach there on average: below 1, because the labels of keys that do "
        "not occur in train have to be guessed. It is about the control alone, not about the task or its baselines.",
    ),
    (
        "Selectivity",
        "the score on the task less the score on the control task, for the same probe, site, split and "
        "budget. A large one says that the probe's success is not memory for keys.",
    ),
    ("Chance check", "labels permuted over rows. It should land at the majority rate; it is never called selectivity."),
    (
        "Other states",
        "the same labels, read from states that lack something: random_states (which word it is, and "
        "nothing else), untrained_model (the architecture without its training), static (a lower site, without the "
        "context that blocks mix in). What a site scores above them is what it adds; it is never called selectivity, "
        "since no label became meaningless.",
    ),
    (
        "Gain",
        "the score less that of the best baseline, on the same rows, paired. The p value is one-sided, against "
        "the margin, and adjusted over the sites, probes, baselines and tasks of the study: by Holm (the chance of any "
        "false claim), or by Benjamini and Hochberg (the share of false claims), as the column says. Intervals of "
        "selectivity are not adjusted.",
    ),
    (
        "Intervals",
        "95 %, from resampling whole sentences (or documents), with the seeds of the probe and the draws of "
        "the control.",
    ),
    (
        "Decodable",
        "at the site and probe that score best on dev, the gain over the best baseline on test clears the "
        "margin (0.02 of accuracy) with a one-sided adjusted p of at most 0.025. Selectively decodable: the interval "
        "of selectivity also lies above 0, for every control.",
    ),
)

LIMITS = (
    "Decodability is a property of a state together with a family of readers. It does not show that the model itself "
    "reads the label from there, or needs it, for anything it does; that takes interventions on the states.",
    "A higher score at one site than at another does not show that the label is computed there: it can have become "
    "easier to read, or been carried along.",
    "A task that is not decodable by these probes can be decodable by others: absence of evidence here has a size, "
    "which the interval gives.",
    "A control task rules out only what it is keyed on. Other regularities that come with the label (position, length, "
    "neighbouring words) can still be what the probe reads.",
    "The figures hold for this corpus and its annotation. The best site is chosen among those probed, on dev.",
)

USE_READING = (
    (
        "Used",
        "replacing the part of the state that stands for the property, by that of rows that have another value "
        "and are otherwise alike, changes what the model does by at least the smallest effect of interest. It is said "
        "of one site, one behaviour and these data, and of nothing else.",
    ),
    (
        "Swap and whole state",
        "the swap moves each state by the difference of class means of its stratum (rows with "
        "the same values of the other properties); whole states are exchanged between two such rows. What only the "
        "second changes is used at the site, in a subspace that is not identified.",
    ),
    (
        "Effect and mediated fraction",
        "the effect is the shift of the output along its natural difference, in SDs of "
        "the clean output; the mediated fraction is the share of that difference which the edit brings about, told "
        "only where the difference itself is established.",
    ),
    (
        "No material use found",
        "the 90 % intervals of both edits lie within the shaded band of equivalence. Other sites "
        "may carry the property, and effects may cancel within a stratum.",
    ),
    (
        "Frozen norms",
        "the share of the effect that goes away when the scales of later norms are held at their clean "
        "values: what is left does not come from a change of length alone.",
    ),
)
