# Sourced by the other scripts: makes .venv in the repository and installs the package into it, once per set of
# requirements. Gives $root and $venv, and the function install EXTRA (EXTRA may be empty).
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

say() { printf '%s\n' "$*" >&2; }

find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    say "Python 3.11 or newer is needed, and was not found as python3.13, python3.12, python3.11 or python3."
    say "Install one, or put it on PATH, and run this script again."
    return 1
}

requirements_hash() {
    cat "$root/setup.cfg" "$root/pyproject.toml" "$root/constraints.txt" |
        "$venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

pip_install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$@"
}

install() {
    local extra=$1 python stamp wanted
    if [ ! -x "$venv/bin/python" ]; then
        python=$(find_python)
        say "Making a virtual environment in .venv with $("$python" --version)"
        "$python" -m venv "$venv"
    fi
    stamp=$venv/.installed-${extra:-plain}
    wanted=$(requirements_hash)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        say "Installing torch (the largest part: some minutes; set PIP_EXTRA_INDEX_URL for a CPU-only build)"
        pip_install "$(grep '^torch==' "$root/constraints.txt")"
    fi
    say "Installing probing${extra:+ with what $extra needs}"
    pip_install -e "$root${extra:+[$extra]}"
    printf '%s\n' "$wanted" >"$stamp"
}
