"""`import llmc.hf` registers llmc's formats with transformers: written model cards name it.

import llmc.hf
model = AutoModelForCausalLM.from_pretrained("OUT")
"""

from llmc.models import hf as _registered

__doc__ = _registered.__doc__
