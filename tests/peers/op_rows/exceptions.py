"""What is otherwise, refused or out of scope, and why."""

ON_PURPOSE = [
    # Who is right, where both give numbers
    (("linalg.norm/subgradients_at_zero",), "derivative",
     "where the norm is 0, so are all derivatives; PyTorch takes one of many, or nan"),
    (("cholesky_inverse", "cholesky_solve"), "a first derivative",
     "one triangle counts, and PyTorch has gradients in the other one too"),
    (("cov",), "a second derivative", "weights in float32 lose digits where a variance is of two"),
    (("nn.functional.hardsigmoid",), "a first derivative", "PyTorch's 1 / 6 is one of float32"),
    (("nn.functional.linear_cross_entropy/chunked",
      "nn.functional.linear_cross_entropy/chunked_none"),
     "a second derivative", "PyTorch's gradient is a constant here, without a word"),
    (("masked.logaddexp",), "a second derivative",
     "what is -inf has no weight and no derivatives, of which PyTorch's second ones are nan"),
    # What is refused
    (("nn.functional.layer_norm", "nn.functional.rms_norm", "nn.functional.group_norm",
      "native_layer_norm", "native_group_norm"),
     "eps must be in [0, inf)", "the root of a negative number is nan, and PyTorch does not look"),
    (("nn.functional.cross_entropy", "nn.functional.nll_loss"),
     "weights of classes must be at least 0", "PyTorch maximises the loss of such a class"),
    (("nn.functional.binary_cross_entropy_with_logits",), "weight must be at least 0",
     "PyTorch maximises such a loss"),
    (("nn.functional.batch_norm",), "x must have shape (N, C, ...)",
     "PyTorch takes an empty vector"),
    (("nn.functional.batch_norm", "native_batch_norm", "_native_batch_norm_legit",
      "_batch_norm_with_update"),
     "momentum must be in [0, 1]", "it is a share of the new mean; PyTorch takes any number"),
    (("tensordot",), "do not align", "PyTorch broadcasts an axis of size 1"),
    (("nonzero", "argwhere"), "not a number", "PyTorch has indices of a number, with no columns"),
]  # fmt: skip

# What is not to be here: patterns of names.
OUT_OF_SCOPE = {
    "complex numbers": (
        "angle cdouble cfloat chalf complex conj* imag isreal linalg.eig linalg.eigvals "
        "nn.functional.silu/complex polar real resolve_* view_as_complex view_as_real"
    ),
    "Fourier transforms and their windows": "fft.* istft stft signal.windows.*",
    "transposed convolution": "nn.functional.conv_transpose* nn.functional.max_unpool*",
    "interpolation": (
        "_upsample* grid_sampler_* nn.functional.grid_sample nn.functional.interpolate/* "
        "nn.functional.upsample_*"
    ),
    "operations on integers": (
        "__rand__ __ror__ __rxor__ bitwise_* gcd lcm tril_indices triu_indices unravel_index"
    ),
    "sparse and quantized matrices": "sparse.* to_sparse torch._scaled_mm*",
    "random numbers": (
        "bernoulli cauchy exponential geometric log_normal multinomial "
        "native_dropout_backward nn.functional.*alpha_dropout* nn.functional.fractional_* "
        "normal* pca_lowrank rand* svd_lowrank uniform"
    ),
    "makes a tensor of none": (
        "arange broadcast_shapes empty* eye full linspace* logspace* new_* ones scalar_tensor zeros"
    ),
    "writes in place, or is about memory": "as_strided* resize_* zero_",
    "no derivative, which numpy.* does on arrays": (
        "bincount bucketize frexp hash_tensor histc histogram* linalg.ldl_* nextafter "
        "searchsorted unique* geqrf"
    ),
    "for PyTorch alone: its backends, and what others are made of": (
        "_chunk_cat _segment_reduce/* _unsafe_* jiterator_* max_pool2d_with_* "
        "nn.functional.batch_norm/without_cudnn nonzero_static torch.ops.aten.*"
    ),
    "a dtype that numpy does not have": "bfloat16",
}
