# %% [markdown]
# # musemo: the emotion of music, from its sound
#
# Twelve sections in one notebook: DEAM's songs become log-mel spectrograms, a conditional GAN
# learns to draw more of them, and a Vision Transformer predicts valence and arousal. Every figure
# stands beside a floor and a ceiling. Attach DEAM, choose a GPU, run all. Nothing is installed; the
# ViT's weights come from the hub, or from a checkpoint attached as an input. The notebook is built
# from the package's sources: change those, not this.
#
# The package's examples and tests are left out here; what a section does to the run is all there.

# %% tags=["parameters"]
preset = "kaggle"  # smoke, demo, kaggle or full
data = "/kaggle/input"  # searched for DEAM's annotation files
out = "/kaggle/working/musemo"  # where the run's artifacts go
values = {}  # single fields, e.g. {"gan.epochs": 20}

# %% tags=["later"]
run = Run(Path(out))

# %% tags=["later"]
config = make_config(preset, {"data.path": data, **values})
