"""What an adapter method can be asked for, one class a method.

A method is added by one class (in `spec.plain` or `spec.routed`, named in `AdapterSpec`), one file in `adapters/`, one
line in its registry and one row in the tests. The mathematics lives in `adapters/`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mlora_sched.spec.plain import DoraSpec, LoraPlusSpec, LoraSpec, RsLoraSpec
from mlora_sched.spec.routed import DynMoleSpec, LlavaMoleSpec, LoraMoeSpec, MixLoraSpec, MolaSpec

AdapterSpec = Annotated[
    LoraSpec
    | RsLoraSpec
    | LoraPlusSpec
    | DoraSpec
    | MixLoraSpec
    | LlavaMoleSpec
    | DynMoleSpec
    | MolaSpec
    | LoraMoeSpec,
    Field(discriminator="method"),
]
