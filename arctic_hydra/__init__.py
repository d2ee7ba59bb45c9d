"""arctic_hydra: a Hydra-composed experiment runner for post-training language models on DeepSpeed."""

import os
import sys

__version__ = "0.1.0"

_PARENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[0] == os.getcwd() != _PARENT:
    # `python -m` puts the working directory first. A `torch.py`, a folder `hydra_plugins` or the metadata of an extension
    # that lies there, perhaps beside downloaded data, must not be imported.
    del sys.path[0]
