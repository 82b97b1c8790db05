"""Renders chat templates in a child process with limits on memory and output, since a template is a program.

    python -m probing.text.chat_rendering

Reads one JSON object a line: first the template and the special pieces, then conversations. It writes one JSON object a
line: the rendered text, or why there is none.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MEMORY = 2 << 30  # bytes of address space above what the libraries take
SECONDS = 60.0  # of one conversation
OUTPUT = 16 << 20  # characters of one prompt


def serve() -> None:
    """Read conversations from standard input and render them, until the input ends."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit()
    setting = json.loads(sys.stdin.readline())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        _allow(SECONDS)
        sys.stdout.write(json.dumps(_rendered(render_jinja_template, setting, json.loads(line))) + "\n")
        sys.stdout.flush()


def _rendered(render: Any, setting: dict[str, Any], job: dict[str, Any]) -> dict[str, str]:
    try:
        prompts = render(
            conversations=[job["messages"]],
            chat_template=setting["template"],
            add_generation_prompt=job["is_open"],
            **setting["pieces"],
        )
        rendered = prompts[0] if isinstance(prompts, list) else prompts[0][0]
    except MemoryError:
        return {"limit": f"more than {MEMORY >> 30} GiB of memory"}
    except Exception as error:  # a template may raise what it likes
        return {"error": (str(error) or type(error).__name__)[:200]}
    return {"text": rendered} if len(rendered) <= OUTPUT else {"limit": f"{len(rendered):,} characters"}


def _limit() -> None:
    """Bound this process's memory, where the system can."""
    try:
        import resource
    except ImportError:
        return
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def _allow(seconds: float) -> None:
    """Bound the processor time from now on: a child whose parent was killed must end as well."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))


if __name__ == "__main__":
    serve()
