"""The papers behind what a run used, as BibTeX: by name of the probe, control, measure or analysis."""

from __future__ import annotations

from collections.abc import Iterable

_ENTRIES = {
    "belinkov2022": (
        "article",
        "Belinkov, Yonatan",
        "Probing Classifiers: Promises, Shortcomings, and Advances",
        "journal",
        "Computational Linguistics",
        "2022",
        {"volume": "48", "number": "1"},
    ),
    "hewitt2019control": (
        "inproceedings",
        "Hewitt, John and Liang, Percy",
        "Designing and Interpreting Probes with Control Tasks",
        "booktitle",
        "Proceedings of EMNLP-IJCNLP",
        "2019",
        {},
    ),
    "hewitt2019structural": (
        "inproceedings",
        "Hewitt, John and Manning, Christopher D.",
        "A Structural Probe for Finding Syntax in Word Representations",
        "booktitle",
        "Proceedings of NAACL-HLT",
        "2019",
        {},
    ),
    "hewitt2021conditional": (
        "inproceedings",
        "Hewitt, John and Ethayarajh, Kawin and Liang, Percy and Manning, Christopher D.",
        "Conditional Probing: Measuring Usable Information Beyond a Baseline",
        "booktitle",
        "Proceedings of EMNLP",
        "2021",
        {},
    ),
    "xu2020": (
        "inproceedings",
        "Xu, Yilun and Zhao, Shengjia and Song, Jiaming and Stewart, Russell and Ermon, Stefano",
        "A Theory of Usable Information under Computational Constraints",
        "booktitle",
        "Proceedings of ICLR",
        "2020",
        {},
    ),
    "voita2020": (
        "inproceedings",
        "Voita, Elena and Titov, Ivan",
        "Information-Theoretic Probing with Minimum Description Length",
        "booktitle",
        "Proceedings of EMNLP",
        "2020",
        {},
    ),
    "zhang2018": (
        "inproceedings",
        "Zhang, Kelly W. and Bowman, Samuel R.",
        "Language Modeling Teaches You More than Translation Does: Lessons Learned Through Auxiliary "
        "Syntactic Task Analysis",
        "booktitle",
        "Proceedings of BlackboxNLP",
        "2018",
        {},
    ),
    "pimentel2020": (
        "inproceedings",
        "Pimentel, Tiago and Valvoda, Josef and {Hall Maudslay}, Rowan and Zmigrod, Ran "
        "and Williams, Adina and Cotterell, Ryan",
        "Information-Theoretic Probing for Linguistic Structure",
        "booktitle",
        "Proceedings of ACL",
        "2020",
        {},
    ),
    "marks2023": (
        "misc",
        "Marks, Samuel and Tegmark, Max",
        "The Geometry of Truth: Emergent Linear Structure in Large "
        "Language Model Representations of True/False Datasets",
        "eprint",
        "2310.06824",
        "2023",
        {"archiveprefix": "arXiv"},
    ),
    "gurnee2023": (
        "misc",
        "Gurnee, Wes and Nanda, Neel and Pauly, Matthew and Harvey, Katherine and Troitskii, "
        "Dmitrii and Bertsimas, Dimitris",
        "Finding Neurons in a Haystack: Case Studies with Sparse Probing",
        "eprint",
        "2305.01610",
        "2023",
        {"archiveprefix": "arXiv"},
    ),
    "holm1979": (
        "article",
        "Holm, Sture",
        "A Simple Sequentially Rejective Multiple Test Procedure",
        "journal",
        "Scandinavian Journal of Statistics",
        "1979",
        {"volume": "6", "number": "2"},
    ),
    "benjamini1995": (
        "article",
        "Benjamini, Yoav and Hochberg, Yosef",
        "Controlling the False Discovery Rate: A Practical and Powerful Approach to Multiple Testing",
        "journal",
        "Journal of the Royal Statistical Society: Series B",
        "1995",
        {"volume": "57", "number": "1"},
    ),
    "geiger2021": (
        "inproceedings",
        "Geiger, Atticus and Lu, Hanson and Icard, Thomas and Potts, Christopher",
        "Causal Abstractions of Neural Networks",
        "booktitle",
        "Advances in Neural Information Processing Systems",
        "2021",
        {},
    ),
    "belrose2023": (
        "inproceedings",
        "Belrose, Nora and Schneider-Joseph, David and Ravfogel, Shauli and Cotterell, "
        "Ryan and Raff, Edward and Biderman, Stella",
        "LEACE: Perfect Linear Concept Erasure in Closed Form",
        "booktitle",
        "Advances in Neural Information Processing Systems",
        "2023",
        {},
    ),
    "ravfogel2020": (
        "inproceedings",
        "Ravfogel, Shauli and Elazar, Yanai and Gonen, Hila and Twiton, Michael and Goldberg, Yoav",
        "Null It Out: Guarding Protected Attributes by Iterative Nullspace Projection",
        "booktitle",
        "Proceedings of ACL",
        "2020",
        {},
    ),
    "elazar2021": (
        "article",
        "Elazar, Yanai and Ravfogel, Shauli and Jacovi, Alon and Goldberg, Yoav",
        "Amnesic Probing: Behavioral Explanation with Amnesic Counterfactuals",
        "journal",
        "Transactions of the Association for Computational Linguistics",
        "2021",
        {"volume": "9"},
    ),
    "canby2024": (
        "misc",
        "Canby, Marc and Davies, Adam and Rastogi, Chirag and Hockenmaier, Julia",
        "How Reliable are Causal Probing Interventions?",
        "eprint",
        "2408.15510",
        "2024",
        {"archiveprefix": "arXiv"},
    ),
    "chernozhukov2018": (
        "article",
        "Chernozhukov, Victor and Chetverikov, Denis and Demirer, Mert and Duflo, Esther "
        "and Hansen, Christian and Newey, Whitney and Robins, James",
        "Double/Debiased Machine Learning for Treatment and Structural Parameters",
        "journal",
        "The Econometrics Journal",
        "2018",
        {"volume": "21", "number": "1"},
    ),
    "chernozhukov2013": (
        "article",
        "Chernozhukov, Victor and Chetverikov, Denis and Kato, Kengo",
        "Gaussian Approximations and Multiplier Bootstrap for Maxima of Sums of High-Dimensional Random Vectors",
        "journal",
        "The Annals of Statistics",
        "2013",
        {"volume": "41", "number": "6"},
    ),
    "westfall1993": (
        "book",
        "Westfall, Peter H. and Young, S. Stanley",
        "Resampling-Based Multiple Testing: Examples and Methods for p-Value Adjustment",
        "publisher",
        "Wiley",
        "1993",
        {},
    ),
    "benjamini2014": (
        "article",
        "Benjamini, Yoav and Bogomolov, Marina",
        "Selective Inference on Multiple Families of Hypotheses",
        "journal",
        "Journal of the Royal Statistical Society: Series B",
        "2014",
        {"volume": "76", "number": "1"},
    ),
    "schuirmann1987": (
        "article",
        "Schuirmann, Donald J.",
        "A Comparison of the Two One-Sided Tests Procedure and the "
        "Power Approach for Assessing the Equivalence of Average Bioavailability",
        "journal",
        "Journal of Pharmacokinetics and Biopharmaceutics",
        "1987",
        {"volume": "15", "number": "6"},
    ),
    "phipson2010": (
        "article",
        "Phipson, Belinda and Smyth, Gordon K.",
        "Permutation P-values Should Never Be Zero: Calculating Exact P-values When Permutations Are Randomly Drawn",
        "journal",
        "Statistical Applications in Genetics and Molecular Biology",
        "2010",
        {"volume": "9"},
    ),
    "rosenbaum1984": (
        "article",
        "Rosenbaum, Paul R. and Rubin, Donald B.",
        "Reducing Bias in Observational Studies Using Subclassification on the Propensity Score",
        "journal",
        "Journal of the American Statistical Association",
        "1984",
        {"volume": "79", "number": "387"},
    ),
    "zhang2024": (
        "inproceedings",
        "Zhang, Fred and Nanda, Neel",
        "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods",
        "booktitle",
        "Proceedings of ICLR",
        "2024",
        {},
    ),
    "efron1993": (
        "book",
        "Efron, Bradley and Tibshirani, Robert J.",
        "An Introduction to the Bootstrap",
        "publisher",
        "Chapman and Hall",
        "1993",
        {},
    ),
}

_ALWAYS = ("belinkov2022", "efron1993")
_OF = {
    "word_type": ("hewitt2019control",),
    "edge": ("hewitt2019control",),
    "keyed": ("hewitt2019control",),
    "random_states": ("hewitt2019control", "pimentel2020"),
    "untrained_model": ("zhang2018",),
    "structural": ("hewitt2019structural",),
    "uuas": ("hewitt2019structural",),
    "mass_mean": ("marks2023",),
    "sparse": ("gurnee2023",),
    "coordinates": ("gurnee2023",),
    "code_length": ("voita2020",),
    "information": ("xu2020", "hewitt2021conditional"),
    "usable_information": ("xu2020",),
    "interchange": ("geiger2021",),
    "class_mean": ("marks2023",),
    "leace": ("belrose2023",),
    "inlp": ("ravfogel2020",),
    "random_subspace": ("elazar2021",),
    "reliability": ("canby2024",),
    "cross_fitting": ("chernozhukov2018",),
    "max_t": ("westfall1993", "chernozhukov2013"),
    "families": ("benjamini2014",),
    "equivalence": ("schuirmann1987",),
    "permutation": ("phipson2010",),
    "propensity": ("rosenbaum1984",),
    "patching": ("zhang2024",),
    "holm": ("holm1979",),
    "bh": ("benjamini1995",),
}


def keys_of(names: Iterable[str], *, always: Iterable[str] = _ALWAYS) -> list[str]:
    """Return the keys, sorted, of the papers behind the members named, and of those that every run rests on."""
    found = set(always)
    for name in names:
        found.update(_OF.get(name.partition(":")[0], ()))
    return sorted(found)


def bibtex(names: Iterable[str], *, always: Iterable[str] = _ALWAYS) -> str:
    """Return the BibTeX entries of the papers behind the members named, and of those that every run rests on."""
    return "\n".join(_entry(key) for key in keys_of(names, always=always))


def _entry(key: str) -> str:
    kind, author, title, field, place, year, more = _ENTRIES[key]
    fields = {"author": author, "title": f"{{{title}}}", field: place, "year": year, **more}
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}\n"
