"""What torch.compile leaves alone."""

from __future__ import annotations

from typing import Any

import torch


def keep_out_of_graphs(function: Any) -> None:
    """Let torch.compile break its graph at a call of the function, and run it as it is.

    torch.compiler.disable does the same with a wrapper that costs a microsecond at each call, and
    with an import of the compiler.
    """
    function._torchdynamo_disable = True
    frames = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
