#!/usr/bin/env bash
# Build the wheel and test it as installed: the extension, the recipes and the coder, without the checkout's src/.
#   scripts/wheel.sh [python with llmc's dependencies]
set -euo pipefail
unset PYTHONPATH
cd "$(dirname "$0")/.."

python=${1:-.venv/bin/python}
place=build/wheel
rm -rf "$place"
"$python" -m pip wheel -qq --no-deps -w "$place" .
"$python" -m venv --without-pip "$place/env"
# The dependencies are those of the other environment; its editable llmc stays behind, for no .pth of it is read.
libraries=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
own=$("$place/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -m pip --python "$place/env/bin/python" install -qq --no-deps "$place"/llmc-*.whl
echo "$libraries" >"$own/dependencies.pth"

cd "$place"
run() { env/bin/python -m pytest -c ../../pyproject.toml --rootdir ../.. -o pythonpath=../../tests "$@"; }
env/bin/python - <<'PY'
from pathlib import Path
import llmc, llmc._native as native
place = Path(llmc.__file__).parent
assert "wheel" in place.parts and Path(native.__file__).parent == place, (place, native.__file__)
assert llmc.recipe_names(), "no recipes in the wheel"
missing = [name for name in ("comparison.schema.json", "report.css") if not (place / "eval" / name).is_file()]
assert not missing, f"not in the wheel: {missing}"
PY
run ../../tests/test_rans.py ../../tests/test_rans_golden.py ../../tests/test_planes.py ../../tests/test_coded_tensor.py
