"""lrfast inside other people's training loops: one module per library, imported by nobody but you.

``huggingface``, ``lightning``, ``accelerate``, ``timm``, ``ignite``, ``fastai``, ``trackers``
(TensorBoard and what logs like W&B) and ``tables`` (pandas) each need their library;
``scheduler`` needs torch alone. docs/integrations.md has two lines of use for each.
"""
