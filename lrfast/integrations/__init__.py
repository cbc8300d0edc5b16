"""Integrations with other training loops, one module per library, each imported by its user only.

``huggingface``, ``lightning``, ``accelerate``, ``timm``, ``ignite``, ``fastai``, ``trackers``
(TensorBoard and loggers such as W&B) and ``tables`` (pandas) each need their library; ``scheduler``
needs torch only. docs/integrations.md shows two lines of use for each.
"""
