"""The papers behind what a run used, as BibTeX: by name of the probe, control, measure or analysis."""

from __future__ import annotations

from collections.abc import Iterable

_ENTRIES = {
    "belinkov2022": ("article", "Belinkov, Yonatan", "Probing Classifiers: Promises, Shortcomings, and Advances",
                     "journal", "Computational Linguistics", "2022", {"volume": "48", "number": "1"}),
    "hewitt2019control": ("inproceedings", "Hewitt, John and Liang, Percy",
                          "Designing and Interpreting Probes with Control Tasks", "booktitle",
                          "Proceedings of EMNLP-IJCNLP", "2019", {}),
    "hewitt2019structural": ("inproceedings", "Hewitt, John and Manning, Christopher D.",
                             "A Structural Probe for Finding Syntax in Word Representations", "booktitle",
                             "Proceedings of NAACL-HLT", "2019", {}),
    "hewitt2021conditional": ("inproceedings",
                              "Hewitt, John and Ethayarajh, Kawin and Liang, Percy and Manning, Christopher D.",
                              "Conditional Probing: Measuring Usable Information Beyond a Baseline", "booktitle",
                              "Proceedings of EMNLP", "2021", {}),
    "xu2020": ("inproceedings", "Xu, Yilun and Zhao, Shengjia and Song, Jiaming and Stewart, Russell and Ermon, "
               "Stefano", "A Theory of Usable Information under Computational Constraints", "booktitle",
               "Proceedings of ICLR", "2020", {}),
    "voita2020": ("inproceedings", "Voita, Elena and Titov, Ivan",
                  "Information-Theoretic Probing with Minimum Description Length", "booktitle", "Proceedings of EMNLP",
                  "2020", {}),
    "zhang2018": ("inproceedings", "Zhang, Kelly W. and Bowman, Samuel R.",
                  "Language Modeling Teaches You More than Translation Does: Lessons Learned Through Auxiliary "
                  "Syntactic Task Analysis", "booktitle", "Proceedings of BlackboxNLP", "2018", {}),
    "pimentel2020": ("inproceedings", "Pimentel, Tiago and Valvoda, Josef and {Hall Maudslay}, Rowan and Zmigrod, Ran "
                     "and Williams, Adina and Cotterell, Ryan",
                     "Information-Theoretic Probing for Linguistic Structure", "booktitle", "Proceedings of ACL",
                     "2020", {}),
    "marks2023": ("misc", "Marks, Samuel and Tegmark, Max", "The Geometry of Truth: Emergent Linear Structure in Large "
                  "Language Model Representations of True/False Datasets", "eprint", "2310.06824", "2023",
                  {"archiveprefix": "arXiv"}),
    "gurnee2023": ("misc", "Gurnee, Wes and Nanda, Neel and Pauly, Matthew and Harvey, Katherine and Troitskii, "
                   "Dmitrii and Bertsimas, Dimitris", "Finding Neurons in a Haystack: Case Studies with Sparse Probing",
                   "eprint", "2305.01610", "2023", {"archiveprefix": "arXiv"}),
    "holm1979": ("article", "Holm, Sture", "A Simple Sequentially Rejective Multiple Test Procedure", "journal",
                 "Scandinavian Journal of Statistics", "1979", {"volume": "6", "number": "2"}),
    "benjamini1995": ("article", "Benjamini, Yoav and Hochberg, Yosef",
                      "Controlling the False Discovery Rate: A Practical and Powerful Approach to Multiple Testing",
                      "journal", "Journal of the Royal Statistical Society: Series B", "1995",
                      {"volume": "57", "number": "1"}),
    "efron1993": ("book", "Efron, Bradley and Tibshirani, Robert J.", "An Introduction to the Bootstrap", "publisher",
                  "Chapman and Hall", "1993", {}),
}  # fmt: skip

_ALWAYS = ("belinkov2022", "efron1993")
_OF = {
    "word_type": ("hewitt2019control",), "edge": ("hewitt2019control",), "keyed": ("hewitt2019control",),
    "random_states": ("hewitt2019control", "pimentel2020"), "untrained_model": ("zhang2018",),
    "structural": ("hewitt2019structural",), "uuas": ("hewitt2019structural",), "mass_mean": ("marks2023",),
    "sparse": ("gurnee2023",), "coordinates": ("gurnee2023",), "code_length": ("voita2020",),
    "information": ("xu2020", "hewitt2021conditional"), "usable_information": ("xu2020",),
    "holm": ("holm1979",), "bh": ("benjamini1995",),
}  # fmt: skip


def keys_of(names: Iterable[str]) -> list[str]:
    """Keys of the papers behind members of these names, and of those that every run rests on; sorted."""
    found = set(_ALWAYS)
    for name in names:
        found.update(_OF.get(name.partition(":")[0], ()))
    return sorted(found)


def bibtex(names: Iterable[str]) -> str:
    """BibTeX entries for members of these names."""
    return "\n".join(_entry(key) for key in keys_of(names))


def _entry(key: str) -> str:
    kind, author, title, field, place, year, more = _ENTRIES[key]
    fields = {"author": author, "title": f"{{{title}}}", field: place, "year": year, **more}
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}\n"
