#!/bin/sh
# Puts the libraries on a node; does nothing where they are there already. Run by setup_commands:
#     sh install.sh 'ray[default,tune]==2.60.0'
# The pin comes from the yaml, so that one file says which Ray the cluster runs; what else is needed
# stands in pyproject.toml, in the versions of constraints.txt. The project's own code is not installed:
# env.sh points at the copied folder.
set -eu
pin=$1
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"

there() {
    python3 - "${pin##*==}" <<'PYTHON' 2>/dev/null
import sys
from importlib.metadata import version

for name in ("torch", "torchvision", "optuna", "mlflow", "matplotlib", "rich", "scikit-learn", "s3fs"):
    version(name)
sys.exit(version("ray") != sys.argv[1])
PYTHON
}

there && exit 0
python3 -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "aim_tune needs Python 3.11 or newer on every node")'
python3 -m venv "$HOME/venv"
python3 - "$here/../pyproject.toml" >"$HOME/requirements.txt" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *extras["s3"], *extras["postgres"], sep="\n")
PYTHON
"$HOME/venv/bin/pip" install --quiet --disable-pip-version-check "$pin" \
    -c "$here/../constraints.txt" -r "$HOME/requirements.txt"
there || { echo "install.sh: $pin is not what python3 sees after the installation" >&2; exit 1; }
