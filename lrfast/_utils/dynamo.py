"""Functions that torch.compile does not trace."""

from __future__ import annotations

from typing import Any

import torch


def disable_dynamo(function: Any) -> None:
    """Let torch.compile break its graph at a call of the function, and run it eagerly.

    torch.compiler.disable does the same with a wrapper that costs a microsecond per call, and with
    an import of the compiler.
    """
    function._torchdynamo_disable = True
    frames = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
