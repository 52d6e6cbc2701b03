"""A trained model as a repository of the Hugging Face Hub.

push.py         the checkpoint, its evaluation, one commit
card.py         the model card: what it is, how it is loaded, its numbers with their protocol
model_index.py  the numbers that the Hub's own tables may show
private.py      what stays behind: places of this machine, in recipes and protocols
"""
