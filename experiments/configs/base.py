"""Base config of an experiment: every field with its meaning, and two recipes.

`default_recipe` is ours: the network is trained as deployed. The estimator "mode" evaluates the
likelihood at the shipped weights. Scales and mixture weights are refitted at each decision of the
mask, latent weights are trained, and the dense network is the teacher.

`paper_recipe` follows arXiv:2510.08999 with the authors' repaired code. It evaluates the likelihood
at the posterior mean at a low temperature, freezes latent weights, and trains gates. It prunes by
magnitude times gate, without a KL on the gates of the survivors. Three mistakes are corrected: both
Bernoulli terms count, the KL is divided by the number of training examples, and no gate scales a
deployed weight. Learning rates fall to 0; in the paper that of the gates falls to 0.007. The
published recipe ranks by gates alone, which it trains slowly, under the KL:
--config.sqs.saliency=gate --config.sqs.learning_rate.gate=0.012 --config.sqs.kl_weight=0.01.
"""

from ml_collections import ConfigDict


def experiment() -> ConfigDict:
    """Make an experiment with our recipe and default data and model."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 128  # examples, over all devices together
    config.accumulate = 1  # micro-batches of a batch; memory holds a single micro-batch
    config.checkpoint_every = 200  # steps; the last step is always saved

    # Devices of a training. A resumed run may use others, see docs/training_at_scale.md.
    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along this axis, which splits the batch; -1: the remaining ones
    config.mesh.fsdp = 1  # devices along this axis, which also splits params, posterior, moments
    # ((pattern, spec), ...) as in sqs_jax.shardings: ((".*kernel", (None, "fsdp")),). Empty: every
    # large leaf is split over fsdp.
    config.sharding = ()

    config.data = ConfigDict()
    # "images"; "language", next tokens of a text; "sentences", with labels; "answers", to questions
    config.data.kind = "images"
    # "digits"; NAME, if the directory has a file NAME.npz; or a dataset of tensorflow-datasets
    config.data.name = "digits"
    config.data.directory = ""  # folder of files or prepared datasets; empty: the default of tfds
    config.data.holdout = "test"  # evaluated part; "validation" while settings are chosen
    config.data.test_split = "test"  # name in tensorflow-datasets; "validation" for ImageNet
    # Texts only. File tokenizer.json, vocab.txt or .bin of llama2.c. Empty: the tokenizer of the
    # weights, or a tokenizer trained on the training text.
    config.data.tokenizer = ""
    config.data.length = 256  # tokens of a sequence
    config.data.stride = 0  # tokens between evaluated windows; 0: the length
    config.data.prompt = "{} It was"  # prompt around a sentence that a decoder labels by a word
    config.data.words = (" terrible", " great")  # next word of each class
    # Images only.
    config.data.image_size = 224  # pixels of the central square, if images have several sizes
    config.data.shift = 0  # augmentation: largest random shift, pixels
    config.data.pad = "black"  # padding of shifted images; "edge" repeats the border
    config.data.flip = False  # augmentation: random horizontal flips

    # Mean and standard deviation by channel, of values in [0, 1]. Empty: those of the training
    # part, equal for all channels.
    config.data.mean = ()
    config.data.deviation = ()

    config.model = ConfigDict()
    config.model.name = "convnet"  # or a key of experiments.models.NETWORKS: "resnet20", ...
    # Pretrained weights, which replace the dense training: a PyTorch state dict, a folder of
    # Hugging Face, a .bin of llama2.c, or dense.sqs of another run.
    config.model.weights = ""
    config.model.shape = ConfigDict()  # language models without weights: fields of config.json
    config.model.stem = "cifar"  # first layers of a ResNet; or "imagenet"
    config.model.dtype = "float32"  # arithmetic; a ConvNet always uses float32
    config.model.remat = False  # language models: the backward pass recomputes each block
    # ConvNet only.
    config.model.features = (16, 32)  # channels of the 3x3 convolutions
    config.model.hidden = 96  # units of the hidden dense layer

    # Training of the dense network, which is the teacher and the start of the posterior.
    config.dense = ConfigDict()
    config.dense.epochs = 60.0  # may be a fraction
    config.dense.optimizer = "adamw"  # or "sgd": momentum 0.9, weight decay in the gradient
    config.dense.learning_rate = 2e-3
    config.dense.weight_decay = 0.0
    config.dense.warmup = 0.0  # fraction of the training

    # Whether the dense network is fine-tuned with the data, steps, schedule and teacher of the
    # compression, as a fair baseline. Runs with the same dense network need this once.
    config.finetune = True

    config.sqs = default_recipe()

    # Calibration, experiments/calibrate.py.
    config.calibration = ConfigDict()
    config.calibration.examples = 256  # training examples that codes are chosen by
    # Batch statistics of the shipped network: "kept" from the dense network, "reestimated" on
    # equally many augmented images, or "best", chosen on held-out images.
    config.calibration.statistics = "best"

    config.evaluation = ConfigDict()
    config.evaluation.temperature = 0.05  # softmax temperature of the posterior mean
    config.evaluation.average_samples = 8  # draws that are averaged, each with its codes; 0: none
    config.evaluation.average_temperature = 1.0  # softmax temperature of the draws
    return config


def language_experiment(rate: float) -> ConfigDict:
    """Make an experiment that compresses all of a language model, with a teacher.

    Args:
      rate: Learning rate of the compression, positive.
    """
    config = experiment()
    config.sqs.pattern = ".*(kernel|embedding)"
    config.sqs.sensitivity = "fisher"
    config.sqs.distill_weight = 1.0
    config.sqs.learning_rate.loc = rate
    config.sqs.learning_rate.means = rate
    config.sqs.learning_rate.dense = rate
    config.evaluation.average_samples = 0
    return config


def default_recipe() -> ConfigDict:
    """Make our recipe."""
    sqs = ConfigDict()
    sqs.recipe = "default"
    # "spike_slab", or a published peer, which learns the zeros: "dgms", a mixture with a component
    # at zero; "codeq", a quantizer with a dead zone, which kl_weight widens; "codeq_mixed", which
    # learns the bits, too. Peers need estimator "mean" and learning_rate.spread > 0, and have no
    # budget. validation.py lists the fields of each method.
    sqs.method = "spike_slab"
    sqs.mistakes = ()  # restored mistakes of the published code: experiments/training/ablations.py
    sqs.order = "together"  # or "prune_first", "quantise_first": experiments/training/sequential.py
    sqs.epochs = 120.0  # may be a fraction
    sqs.generated = 0  # sequences sampled from the dense language model, as further training data
    sqs.pattern = ".*kernel"  # regular expression of the compressed leaves' paths
    # Bytes of model.sqs, from the first step on; 0: no budget. A budget determines K and sparsity
    # of each tensor, and replaces `components`, `sparsity`, `scope` and the ramp.
    sqs.target_bytes = 0
    # Cost of a squared error in the budget's allocation, by the "scale" of the tensor or by its
    # "fisher" information.
    sqs.sensitivity = "scale"
    # Start of the latent weights. "weights": the dense weights. "calibration": the codes of
    # experiments.calibrate; the price of codes, not pruning, then keeps the size. Or a peer of
    # experiments.compare: "kmeans-prune", "decomposition", "gptq", ... If learning_rate.loc is 0,
    # these codes are fixed, and only codebooks and dense leaves are trained.
    sqs.start = "weights"
    sqs.components = 4  # K, levels of a tensor that are not zero
    sqs.window_kind = "single"  # or "equal", "outlier", see sqs_jax.Windows
    sqs.window_count = 1
    sqs.prior_inclusion = 0.2  # prior probability of a weight that is not zero
    sqs.prior_scale = 0.3  # standard deviation of the slab
    sqs.kl_weight = 1e-5  # with estimator "mode" the KL is a weak decay of the codebook
    sqs.estimator = "mode"  # weights of the likelihood: "mode", "mean" or "sample"
    sqs.temperature_start = 1.0  # softmax temperature of the responsibilities, geometric in steps
    sqs.temperature_end = 0.05
    sqs.relaxation = 0.5  # temperature of the draws, estimator "sample" only
    # Peak learning rates of Adam, with cosine decay to 0; 0 freezes.
    sqs.learning_rate = ConfigDict(
        {"loc": 2e-3, "gate": 0.0, "means": 2e-3, "spread": 0.0, "dense": 2e-3}
    )
    sqs.warmup = 0.0  # fraction of the run, of the linear warm-up
    sqs.latent_end = 1.0  # fraction of the run, after which latent weights are frozen
    sqs.weight_decay = 0.0
    sqs.gate_end = 1.0  # fraction of the run, after which gates are frozen
    sqs.rate_weight = 0.0  # weight of the code length under the mixture weights, -log pi
    # Batches of augmented training images that batch statistics are estimated from, for shipped
    # weights and posterior means; 0: running statistics of the training
    sqs.reestimate = 0
    # Pruning; times are fractions of the run.
    sqs.sparsity = 0.81
    sqs.scope = "global"  # or "tensor": the sparsity holds for each tensor
    # "magnitude"; "gate", for estimators that train gates; or "activation", magnitude times the RMS
    # of the input, measured on config.calibration.examples
    sqs.saliency = "magnitude"
    sqs.prune_start = 0.0
    sqs.prune_end = 0.4  # end of the cubic ramp
    sqs.prune_freeze = 0.8  # last decision of the mask
    sqs.prune_every = 10  # steps between decisions
    sqs.refit = True  # each decision refits scales and mixture weights
    sqs.distill_weight = 0.5  # weight of the teacher's term; the rest is that of the labels
    sqs.distill_temperature = 2.0
    sqs.dense_dtype = "float16"  # codebooks, biases, other dense leaves of the file; empty: exact
    return sqs


def paper_recipe() -> ConfigDict:
    """Make the paper's recipe for ResNet-18, with steps as fractions of the run."""
    sqs = default_recipe()
    sqs.recipe = "paper"
    sqs.prior_inclusion = 0.01
    sqs.prior_scale = 3.0
    sqs.kl_weight = 0.0
    sqs.estimator = "mean"
    sqs.temperature_start = sqs.temperature_end = 1e-3
    sqs.learning_rate = ConfigDict(
        # The paper's rate is 0.012, for logits that are divided by 0.01 before the sigmoid.
        {"loc": 0.0, "gate": 1.2, "means": 5e-5, "spread": 0.0, "dense": 5e-5}
    )
    sqs.weight_decay = 5e-7
    sqs.prune_start = 5 / 11
    sqs.prune_end = 9 / 11
    sqs.prune_freeze = 9 / 11
    sqs.distill_weight = 0.0
    return sqs
