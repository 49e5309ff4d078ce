"""A check of the checks: plants one-line defects one by one and shows that the tests catch each.

    python benchmarks/plant_defects.py              all defects
    python benchmarks/plant_defects.py gait adam    those whose name holds one of the words

Each defect is one line of a file changed in a copy of the project; the tests named with it have to fail.
Exit status 1 if a defect survives, or if the line it changes is not there once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_SECONDS = 600.0  # several times what the tests of any defect take


@dataclass(frozen=True)
class Defect:
    name: str
    file: str
    line: str  # as it stands
    defect: str  # what it becomes
    tests: str  # where it has to be caught


RULES = "tests/test_rules.py tests/test_golden_dense.py"
LOOPS = "tests/test_loops.py tests/test_patch_loops.py"
BLAS = "tests/test_blas.py"
SOLVER = "tests/test_inverse.py tests/test_series.py"
CUBLAS = "tests/test_cublas.py"
CONV = "tests/test_conv.py tests/test_golden_conv.py"
DEFECTS = [
    Defect("f': slope on the wrong side", "npgait/activations.py",
           "f_prime = (a >= 0).astype(real)",
           "f_prime = (a < 0).astype(real)", "tests/test_activations.py"),
    Defect("f^-1: multiplied instead of divided", "npgait/activations.py",
           "return array_module(y).where(y >= 0, y, y / self.slope)",
           "return array_module(y).where(y >= 0, y, y * self.slope)", "tests/test_activations.py"),
    Defect("difference: nudge of the wrong sign", "npgait/activations.py",
           "xp.subtract(y, y_nudged,", "xp.add(y, y_nudged,", "tests/test_activations.py"),
    Defect("difference: kink ignored", "npgait/activations.py",
           "if crossed.any():", "if False:",
           "tests/test_activations.py"),
    Defect("difference: f' missing", "npgait/activations.py",
           "d = xp.divide(v, d, out=d)", "d = v + 0 * y",
           "tests/test_activations.py"),
    Defect("dense forward: bias missing", "npgait/layers/dense.py",
           "y = self.f.add_bias_and_activate(a, self.b[:u])",
           "y = self.f(a)", "tests/test_dense.py"),
    Defect("dense inverse: bias added", "npgait/layers/dense.py",
           "return self._shaped(_LU(self.f.inverse(y) - self.b, self.W, name=self.name))",
           "return self._shaped(_LU(self.f.inverse(y) + self.b, self.W, name=self.name))",
           "tests/test_dense.py"),
    Defect("dense inverse: f^-1 missing", "npgait/layers/dense.py",
           "return self._shaped(_LU(self.f.inverse(y) - self.b, self.W, name=self.name))",
           "return self._shaped(_LU(y - self.b, self.W, name=self.name))", "tests/test_dense.py"),
    Defect("dense transpose: feedback ignored", "npgait/layers/dense.py",
           "W = self.W[:, : self.used] if B is None else B", "W = self.W[:, : self.used]",
           "tests/test_dense.py"),
    Defect("local update: f' missing", "npgait/layers/dense.py",
           "delta = self.f.times_derivative(a[:, :u], error)",
           "delta = 1.0 * error", "tests/test_dense.py"),
    Defect("local update: f'^2", "npgait/layers/dense.py",
           "delta = self.f.times_derivative(a[:, :u], error)",
           "delta = self.f.times_derivative(a[:, :u], error, 2)", "tests/test_dense.py"),
    Defect("local update: bias averaged", "npgait/layers/dense.py",
           "db = column_sums(delta)", "db = delta.mean(axis=0)", "tests/test_dense.py"),
    Defect("BP: f' missing", "npgait/rules/bp.py",
           "e = layer.transpose(layer.f.times_derivative(a, e))",
           "e = layer.transpose(e)", RULES),
    Defect("FA: weights instead of feedback", "npgait/rules/fa.py",
           "layer.f.times_derivative(a, e), B)",
           "layer.f.times_derivative(a, e))", RULES),
    Defect("DFA: wrong sign", "npgait/rules/dfa.py",
           "e = error if B is None else product(error, B).reshape(len(y), *layer.shape_out)",
           "e = error if B is None else -product(error, B).reshape(len(y), *layer.shape_out)", RULES),
    Defect("TP: half the error", "npgait/rules/tp.py", "v, s = e, 1.0", "v, s = e, 0.5", RULES),
    Defect("ITP: gamma of the layer above", "npgait/rules/itp.py", "s = gamma * s", "s = gamma", RULES),
    Defect("ITP absolute: scale forgotten", "npgait/rules/itp.py", "m = m / gamma", "m = m", RULES),
    Defect("GAIT: f' instead of f'^2", "npgait/rules/gait.py",
           "times_derivative(a, e, power=2)",
           "times_derivative(a, e, power=1)", RULES),
    Defect("GAIT: gamma off by one layer", "npgait/rules/gait.py",
           "s = _normalised(gamma, layer.n_units, e) if normalised else gamma * s",
           "s = _normalised(gamma, layer.n_units, e) if normalised else gamma", RULES),
    Defect("GAIT: n counts used units only", "npgait/rules/gait.py",
           "s = _normalised(gamma, layer.n_units, e) if normalised else gamma * s",
           "s = _normalised(gamma, layer.used, e) if normalised else gamma * s", RULES),
    Defect("GAIT: norm not square-rooted", "npgait/rules/gait.py",
           "size = _divide(gamma * n**0.5, _norm_per_sample(e))",
           "size = _divide(gamma * n**0.5, _norm_per_sample(e) ** 2)", RULES),
    Defect("GAIT absolute: f' instead of f'^2", "npgait/rules/gait.py",
           "eps = gamma_l * layer.f.derivative(a) ** 2", "eps = gamma_l * layer.f.derivative(a)", RULES),
    Defect("GAIT absolute: target and activity swapped", "npgait/rules/gait.py",
           "t = keep_auxiliary(layer.inverse((1 - eps) * y + eps * t, x), records[l - 1].y)",
           "t = keep_auxiliary(layer.inverse((1 - eps) * t + eps * y, x), records[l - 1].y)", RULES),
    Defect("zero error: divided by zero", "npgait/rules/gait.py",
           "return xp.where(zero, denominator, numerator / xp.where(zero, 1, denominator))",
           "return numerator / denominator", RULES),
    Defect("output target: wrong sign", "npgait/rules/targets.py",
           "t[:, : error.shape[1]] -= error", "t[:, : error.shape[1]] += error", RULES),
    Defect("zero error: rounding passed down", "npgait/rules/targets.py",
           "m = (error != 0).any(axis=1, keepdims=True).astype(y.dtype)",
           "m = (error == error).any(axis=1, keepdims=True).astype(y.dtype)", RULES),
    Defect("regulariser: factor 2 for 4", "npgait/orthogonality.py",
           "_times(4 * strength, _minus_diagonal(G, 1, overwrite), W, add_to)",
           "_times(2 * strength, _minus_diagonal(G, 1, overwrite), W, add_to)",
           "tests/test_orthogonality.py"),
    Defect("regulariser: diagonal kept", "npgait/orthogonality.py",
           "_minus_diagonal(G, G.diagonal(), overwrite)",
           "_minus_diagonal(G, 0 * G.diagonal(), overwrite)", "tests/test_orthogonality.py"),
    Defect("regulariser: in place of the update, not added to it", "npgait/orthogonality.py",
           "gemm(factor, A, B, add_to, beta=1)", "gemm(factor, A, B, add_to, beta=0)",
           "tests/test_orthogonality.py"),
    Defect("gram: W^T W for W W^T", "npgait/orthogonality.py",
           "rows = [W if W.shape[0] <= W.shape[1] else W.T for",
           "rows = [W if W.shape[0] < W.shape[1] else W.T for", "tests/test_orthogonality.py"),
    Defect("series: diagonal of G not put back", "npgait/orthogonality.py",
           "diagonal[...] = before", "pass", "tests/test_orthogonality.py"),
    Defect("series: W not transposed", "npgait/series.py",
           "product(rows, W[:, : d.shape[-1]].T)", "product(rows, W[: d.shape[-1], :])",
           SOLVER),
    Defect("series: R of the wrong sign", "npgait/series.py",
           "term = gemm(-1, term, off)", "term = gemm(1, term, off)", SOLVER),
    Defect("series: rows taken for equally long after the first term", "npgait/series.py",
           "    term = gemm(-1, term, off)\n    term /= D\n",
           "    term = gemm(-1, term, off)\n    term /= D.mean()\n", SOLVER),
    Defect("gemm: C^T made of A and B as they are", "npgait/blas.py",
           "_by_blas(alpha, B.T, A.T, C.T, beta)", "_by_blas(alpha, A.T, B.T, C.T, beta)", BLAS),
    Defect("gemm: C overwritten while it is read", "npgait/blas.py",
           "if np.may_share_memory(C, A) or np.may_share_memory(C, B):", "if False:", BLAS),
    Defect("gemm: rows of a larger matrix taken for its own", "npgait/layout.py",
           "return AS_IS, down // size", "return AS_IS, m", BLAS),
    Defect("series: infinite errors trusted", "npgait/series.py",
           "            if not np.isfinite(last):\n                return None, k\n", "",
           SOLVER),
    Defect("gemm: memory without C added", "npgait/blas.py",
           "beta = 0.0 if C is None else beta", "beta = beta", BLAS),
    Defect("gemm: NumPy leaves alpha out", "npgait/blas.py",
           "P *= P.dtype.type(alpha) if xp is np else alpha", "pass", BLAS),
    Defect("syrk: upper triangle for the lower", "npgait/blas.py",
           "ROW_MAJOR, LOWER = 101, 122", "ROW_MAJOR, LOWER = 101, 121", BLAS),
    Defect("W W^T: blocks below the diagonal left out", "npgait/blas.py",
           "for columns in blocks[: k + 1]]", "for columns in blocks[k : k + 1]]",
           BLAS),
    Defect("normal equations: trusted unseen", "npgait/inverse.py",
           "return z if relative_residual(z, d, W) <= TRUSTED * tolerance else None", "return z",
           SOLVER),
    Defect("LU: W not transposed", "npgait/inverse.py",
           "xp.linalg.solve(W.T, padded.T).T",
           "xp.linalg.solve(W, padded.T).T", SOLVER),
    Defect("LU: singular weights pass", "npgait/inverse.py",
           "if not relative_residual(z, rows, W) < 0.01:",
           "if False:", SOLVER),
    Defect("orthogonal: signs of R forgotten", "npgait/initialisation.py",
           "Q *= np.where(np.diagonal(R) < 0, -1.0, 1.0)", "Q *= 1.0", "tests/test_orthogonality.py"),
    Defect("cross-entropy: onehot forgotten", "npgait/losses.py",
           "error = exp / total", "error = 2 * exp / total", "tests/test_losses.py"),
    Defect("Adam: bias correction of the wrong moment", "npgait/optimizers.py",
           "correct2 = 1 - self.beta2**self.t if self.bias_correction else 1.0",
           "correct2 = 1 - self.beta1**self.t if self.bias_correction else 1.0",
           "tests/test_optimizers.py"),
    Defect("Adam: epsilon under the root", "npgait/optimizers.py",
           "xp.sqrt(v, out=buffer)\n        buffer += epsilon",
           "xp.sqrt(v + epsilon, out=buffer)", "tests/test_optimizers.py"),
    Defect("angle: half of it", "npgait/metrics.py",
           "return float(np.degrees(2 * np.arctan2(difference, total)))",
           "return float(np.degrees(np.arctan2(difference, total)))", "tests/test_metrics.py"),
    Defect("top-k: ties count for the network", "npgait/metrics.py",
           "ahead = (~(y < own)).sum(axis=1) - 1", "ahead = (y > own).sum(axis=1)",
           "tests/test_metrics.py"),
    Defect("step: regulariser left out", "npgait/step.py",
           "regulariser(layer.W, G, recipe.ortho_strength, add_to=dW, overwrite=True)",
           "regulariser(layer.W, G, recipe.ortho_strength, overwrite=True)",
           "tests/test_training.py"),
    Defect("step: mean forgotten", "npgait/step.py",
           'share = 1.0 if recipe.reduction == "sum" else 1.0 / batch_size', "share = 1.0",
           "tests/test_training.py"),
    Defect("resume: the order drawn anew", "npgait/training.py",
           "if progress.batch == 0:", "if True:", "tests/test_training.py"),
    Defect("patches: odd padding at the top and left", "npgait/layers/patches.py",
           "return total // 2, total - total // 2", "return total - total // 2, total // 2", CONV),
    Defect("patches: stride forgotten", "npgait/layers/patches.py",
           "strides=(b, s * h, s * w, h))", "strides=(b, h, w, h))", CONV),
    Defect("patches: overlap overwrites", "npgait/layers/patches.py",
           "+= values[:, :, :, i, j]", "= values[:, :, :, i, j]", CONV),
    Defect("patches: rows and columns of the kernel swapped", "npgait/layers/patches.py",
           "+= values[:, :, :, i, j]", "+= values[:, :, :, j, i]", CONV),
    Defect("W W^T: blocks not mirrored", "npgait/kernels/__init__.py",
           "image[...] = block.T", "image[...] = 0", LOOPS),
    Defect("loops: last squares of W W^T not mirrored", "npgait/kernels/loops.c",
           "int64 bottom = least(top + TILE_ROWS, rows);",
           "int64 bottom = least(top + TILE_ROWS, rows - 1);", LOOPS),
    Defect("conv forward: bias doubled", "npgait/layers/conv.py",
           "self.f.add_bias_and_activate(a[part], self.b[:u], ",
           "self.f.add_bias_and_activate(a[part], 2 * self.b[:u], ", CONV),
    Defect("conv inverse: correction off by one", "npgait/layers/conv.py",
           "correction = count_patches(self.window, xp, y.dtype) - 1",
           "correction = count_patches(self.window, xp, y.dtype)", CONV),
    Defect("conv transpose: feedback ignored", "npgait/layers/conv.py",
           "W = self.W[:, : self.used] if B is None else B", "W = self.W[:, : self.used]", CONV),
    Defect("conv local update: f' missing", "npgait/layers/conv.py",
           "delta = self.f.times_derivative(a[part][..., :u], error[part])",
           "delta = 1.0 * error[part]", CONV),
    Defect("conv local update: only the last slice", "npgait/layers/conv.py",
           "functools.reduce(operator.iadd, values)",
           "functools.reduce(lambda _, value: value, values)", CONV),
    Defect("conv: n counts used channels only", "npgait/layers/conv.py",
           "return rows * columns * self.W.shape[0 if self.implicit else 1]",
           "return rows * columns * self.used", CONV),
    Defect("absolute targets: scale of a sample forgotten", "npgait/rules/targets.py",
           "return m.reshape(len(e), *[1] * (e.ndim - 1)) * e", "return e", CONV),
    Defect("conformal: size not divided out", "npgait/orthogonality.py",
           "_times(4 * strength / c2,", "_times(4 * strength,", "tests/test_orthogonality.py"),
    Defect("decoupled: four times too strong", "npgait/step.py",
           "recipe.ortho_strength / 4, overwrite=True)",
           "recipe.ortho_strength, overwrite=True)", "tests/test_training.py"),
    Defect("every k: applied at all steps", "npgait/step.py",
           "step % self.ortho_every == 0", "step >= 0", "tests/test_training.py"),
    Defect("refinement: residual of the wrong sign", "npgait/series.py",
           "return gemm(-1, z, W, r, beta=1)", "return gemm(1, z, W, r, beta=1)",
           SOLVER),
    Defect("refinement: what is left along short rows not seen", "npgait/series.py",
           "xp.stack([xp.linalg.norm(r), xp.linalg.norm(c)])",
           "xp.stack([xp.linalg.norm(r), 0 * xp.linalg.norm(c)])", SOLVER),
    Defect("refinement: what no row reaches not seen", "npgait/series.py",
           "xp.stack([xp.linalg.norm(r), xp.linalg.norm(c)])",
           "xp.stack([0 * xp.linalg.norm(r), xp.linalg.norm(c)])", SOLVER),
    Defect("refinement: rows taken for equally long", "npgait/series.py",
           "rows, D = d.reshape(-1, d.shape[-1]), _squares(W)\n    if",
           "rows, D = d.reshape(-1, d.shape[-1]), 0 * _squares(W) + _squares(W).mean()\n    if",
           SOLVER),
    Defect("checkpoint: read whatever its digest says", "npgait/checkpoint.py",
           'if hashlib.file_digest(file, "sha256").hexdigest().encode() != digest:', "if False:",
           "tests/test_checkpoint.py"),
    Defect("implicit: n counts used units only", "npgait/layers/dense.py",
           "return self.n_in if self.implicit else self.n_out", "return self.n_out",
           "tests/test_implicit.py"),
    Defect("QR: upper triangle not transposed", "npgait/inverse.py",
           "xp.linalg.solve(upper.T, rows.T)",
           "xp.linalg.solve(upper, rows.T)",
           SOLVER),
    Defect("replay: always the first batch", "npgait/replay.py",
           "self.x[...] = x", "pass", "tests/test_replay.py"),
    Defect("replay: trusted unseen", "npgait/replay.py",
           "if all(map(_close, recording.changed, after, before)):", "if True:", "tests/test_replay.py"),
    Defect("replay: Adam's t not counted", "npgait/replay.py",
           "(t + 1, [products", "(t, [products", "tests/test_replay.py"),
    Defect("replay: one recording for all terms and batches", "npgait/replay.py",
           "(x.shape, x.dtype, labels.shape, labels.dtype, self.recipe.is_due(step), precision_of(x)),",
           "(),",
           "tests/test_replay.py"),
    Defect("kernel: Adam's clock stands", "npgait/kernels/elementwise.cu",
           "clock[0] = t;", ";", "tests/test_kernels.py tests/test_replay.py"),
    Defect("equations: Adam without its epsilon", "npgait/kernels/equations.h",
           "rate * (*m / (sqrt(*v) + epsilon))", "rate * (*m / sqrt(*v))",
           "tests/test_kernels.py"),
    Defect("equations: kink crossed only upwards", "npgait/kernels/equations.h",
           "return (y >= 0) != (y - s * v >= 0);", "return (y >= 0) < (y - s * v >= 0);", LOOPS),
    Defect("equations: f^-1 of the unnudged y twice", "npgait/kernels/equations.h",
           "leaky_relu_inverse(y - s * v, slope)", "leaky_relu_inverse(y, slope)", LOOPS),
    Defect("loops: kinks of the last stretch only", "npgait/kernels/loops.c",
           "crossed |= crosses_kink", "crossed = crosses_kink", LOOPS),
    Defect("loops: every sample nudged by the first's s", "npgait/kernels/loops.c",
           "REAL size = s[first / per_sample];", "REAL size = s[0];", LOOPS),
    Defect("loops: padding on the right not zeroed", "npgait/kernels/loops.c",
           "for (int64 q = run.to; q < length; ++q) out[q] = 0;", "", LOOPS),
    Defect("loops: a wide run's last values forgotten", "npgait/kernels/loops.c",
           "memcpy(out + length - WIDE, in + length - WIDE, WIDE * sizeof(REAL));", "", LOOPS),
    Defect("loops: sums over samples begun anew", "npgait/kernels/loops.c",
           "PATCH, 1, P, PATCH);", "PATCH, 0, P, PATCH);", LOOPS),
    Defect("loops: images not zeroed before patches are added", "npgait/kernels/loops.c",
           "memset(x, 0, samples * IMAGE * sizeof(REAL));", "", LOOPS),
    Defect("tiles: a row of the image too high", "npgait/kernels/tiles.c",
           "(row + t / columns) * s * pitch", "(row + t / columns) * pitch", LOOPS),
    Defect("tiles: the second of each pair left out", "npgait/kernels/tiles.c",
           "(Eights)(acc[c] + (Vector)second)", "(Eights)acc[c]", LOOPS),
    Defect("tiles: the first channels' weights for all", "npgait/kernels/tiles.c",
           "W + c * size_of_W", "W", LOOPS),
    Defect("tiles: the first channels' errors for all", "npgait/kernels/tiles.c",
           "repeat(d + t * u + c,", "repeat(d + t * u,", LOOPS),
    Defect("tiles: all phases with the weights of the first", "npgait/kernels/tiles.c",
           "M_phase += blocks * LANES * V * size_of_M;", "", LOOPS),
    Defect("tiles: pixels of the padding are written", "npgait/kernels/tiles.c",
           "&& 0 <= w && w < width)", "&& w < width)", LOOPS),
    Defect("tiles: neighbours the wrong way round", "npgait/kernels/tiles.c",
           "lay_out(last, out, over, -s * row,", "lay_out(last, out, over, s * row,", LOOPS),
    Defect("tiles: only the last positions' sum", "npgait/kernels/tiles.c",
           "acc[r][c] = sums[r * V + c];", "acc[r][c] = (Vector){0};", LOOPS),
    Defect("tiles: each band reads the first's pixels", "npgait/kernels/tiles.c",
           "image + (row * s + i) * pitch", "image + i * pitch", LOOPS),
    Defect("patches: an image's run on into the next one's", "npgait/kernels/loops.c",
           "next = least((b + 1) * positions, last);", "next = last;", LOOPS),
    Defect("patches: each time begins at the start of an image", "npgait/kernels/loops.c",
           "int from = (int)(at - b * positions), to = (int)(next - b * positions);",
           "int from = 0, to = (int)(next - at);", LOOPS),
    Defect("shapes of kernels not looked at", "npgait/kernels/__init__.py",
           "if len(set(shapes.values())) > 1:", "if False:", LOOPS),
    Defect("kernel: last patch row forgotten", "npgait/kernels/patches.cu",
           "row <= last_row", "row < last_row", "tests/test_kernels.py"),
    Defect("kernel: patches over the right edge of the image", "npgait/kernels/patches.cu",
           " && at < (long long)line", "", "tests/test_kernels.py"),
    Defect("kernel: 64-bit indices cut no patches", "npgait/kernels/patches.cu",
           "else cut<unsigned long long>(x, patches, n, THE_WINDOW);", "else return;",
           "tests/test_kernels.py"),
    Defect("kernel: diagonal blocks mirrored onto themselves", "npgait/kernels/elementwise.cu",
           "if (block != image || j < i)", "if (block != image)", "tests/test_kernels.py"),
    Defect("loops: a block mirrored below the diagonal only", "npgait/kernels/loops.c",
           "int on_diagonal = block == image;", "int on_diagonal = 1;", LOOPS),
    Defect("cuBLAS: A and B in the order of rows", "npgait/cublas.py",
           "OPERATIONS[b[0]], OPERATIONS[a[0]], m, n, k,",
           "OPERATIONS[a[0]], OPERATIONS[b[0]], m, n, k,", CUBLAS),
    Defect("cuBLAS: the other triangle", "npgait/cublas.py",
           "UPPER, DEFAULT_ALGORITHM = 1, -1", "UPPER, DEFAULT_ALGORITHM = 0, -1", CUBLAS),
    Defect("cuBLAS: beta on the device always 0", "npgait/cublas.py",
           "self.betas[dtype][int(beta) :]", "self.betas[dtype][0:]", CUBLAS),
    Defect("cuBLAS: TF32 whatever was chosen", "npgait/cublas.py",
           "COMPUTE[precision_of(C)]", "COMPUTE['tf32']", CUBLAS),
    Defect("cuBLAS: status not looked at", "npgait/cublas.py", "if status:", "if False:", CUBLAS),
    Defect("recordings: products asked of CuPy", "npgait/gpu.py",
           "with in_recordings(self.device):", "with suppress():", "tests/test_replay.py"),
    Defect("TF32 asked for what it cannot reach", "npgait/inverse.py",
           "return max(self.tolerance or DEFAULT_TOLERANCE[precision], least)",
           "return self.tolerance or DEFAULT_TOLERANCE[precision]", SOLVER),
    Defect("TF32 left on for what is measured", "npgait/backend.py",
           "products.set_compute_type(np.dtype(np.float32), products.COMPUTE_TYPE_FP32)", "pass",
           "tests/test_backend.py"),
    Defect("column sums: rows after the last stage left out", "npgait/sums.py",
           "return sums if whole == len(x) else sums + x[whole:].sum(axis=0)", "return sums",
           "tests/test_sums.py"),
    Defect("scaling of bytes: last slice forgotten", "npgait/data.py",
           "for i in range(0, len(x), 256):", "for i in range(0, max(1, len(x) - 255), 256):",
           "tests/test_data.py"),
    Defect("spectral norm: directions not kept apart", "npgait/orthogonality.py",
           "V, _ = xp.linalg.qr(V)", "V = V / 2", "tests/test_orthogonality.py"),
    Defect("network: layers of one name", "npgait/network.py",
           "if names[layer.name] > 1:", "if False:", "tests/test_saving.py"),
    Defect("loops: read-only arrays written to", "npgait/kernels/__init__.py",
           "if any(array_module(a) is np and not a.flags.writeable for a in arrays):", "if False:",
           LOOPS),
    Defect("solver: overflow taken for singular weights", "npgait/inverse.py",
           "if not np.isfinite(float(xp.linalg.norm(rows))):", "if False:", SOLVER),
    Defect("metrics: keys in the order of the checkpoint", "npgait/run_folder.py",
           "rows = [_in_order(row) for row in rows]", "rows = list(rows)", "tests/test_checkpoint.py"),
    Defect("run folder: two processes in one", "npgait/files.py",
           "            free = False", "            free = True", "tests/test_cli.py"),
    Defect("replay: what a failed trial changed left as it is", "npgait/replay.py",
           "        if after:", "        if False:", "tests/test_replay.py"),
    Defect("f': the kink on the lower side", "npgait/activations.py",
           "f_prime = (a >= 0).astype(real)", "f_prime = (a > 0).astype(real)",
           "tests/test_activations.py"),
    Defect("loops: the kink on the lower side", "npgait/kernels/equations.h",
           "return y >= 0 ? v : v / slope;", "return y > 0 ? v : v / slope;", LOOPS),
    Defect("files: a subclass saved as its base", "npgait/saving.py",
           "if type(layer) is Dense:", "if isinstance(layer, Dense):", "tests/test_saving.py"),
    Defect("export: a subclass written as its base", "npgait/export.py",
           "    describe(network)", "    pass", "tests/test_export.py"),
    Defect("check: another solver than the run's", "npgait/checking.py",
           "solver.fresh(reports)(d, layer.W, name=layer.name)",
           "InverseSolver(reports=reports)(d, layer.W, name=layer.name)", "tests/test_check.py"),
    Defect("spread: of a population", "npgait/comparison.py",
           "np.std(values, ddof=1)", "np.std(values)", "tests/test_compare.py"),
    Defect("convolution: W as it lies, whatever BLAS makes of it", "npgait/layers/patch_products.py",
           "lies is not None and lies[0] == AS_IS", "W.strides[1] == W.itemsize", CONV),
    Defect("losses: labels from the end", "npgait/validation.py",
           "not 0 <= labels.min() <= labels.max()", "not labels.max()", "tests/test_losses.py"),
    Defect("network: NaN is a class", "npgait/network.py",
           "if bool(xp.isnan(y).any()):", "if False:", "tests/test_models.py"),
    Defect("plans: no terms to spare", "npgait/plans.py",
           "max(terms + SPARE, FEWEST)", "terms", "tests/test_gpu_path.py"),
    Defect("layout: the stride of one row is believed", "npgait/layout.py",
           "down = m * size if n == 1 else down\n", "\n", CONV),
    Defect("patches: the strides of one column are believed", "npgait/layers/patches.py",
           "w = channels * padded.itemsize", "w = padded.strides[2]", CONV),
    Defect("loops: foreign byte order read as the machine's", "npgait/kernels/loops.py",
           "if switched_off() or not dtype.isnative:", "if switched_off():", LOOPS),
    Defect("residual: auxiliary units not counted", "npgait/series.py",
           "z.reshape(-1, len(W)), W)\n", "z.reshape(-1, len(W)), W)[:, : d.shape[-1]]\n",
           SOLVER),
    Defect("solver: errors whose squares underflow are trusted", "npgait/inverse.py",
           "lift = _lift(d)", "lift = None", SOLVER),
    Defect("threads: several share out at once", "npgait/parallel.py",
           "_sharing_out = threading.Lock()", "_sharing_out = threading.Semaphore(9)",
           "tests/test_parallel.py"),
    Defect("Adam: a state that later steps change", "npgait/optimizers.py",
           'moments = {f"m{i}": m.copy() for', 'moments = {f"m{i}": m for', "tests/test_optimizers.py"),
    Defect("feedback: drawn anew at every fit", "npgait/rules/__init__.py",
           "if shapes is None or (own and", "if shapes is None or (False and", "tests/test_saving.py"),
    Defect("feedback: not written", "npgait/saving.py",
           '"feedback": network.named_feedback(),', '"feedback": {},', "tests/test_saving.py"),
    Defect("files: a pipe is replaced", "npgait/files.py",
           "if path.exists() and not path.is_file():", "if False:", "tests/test_files.py"),
    Defect("image folders: classes that training lacks are dropped", "loaders/folder.py",
           "if name not in training]:", "if False]:", "tests/loaders/test_folder.py"),
    Defect("recordings: a learning rate that is no float is not looked at", "npgait/replay.py",
           "isinstance(value, Number | str)", "isinstance(value, float | str)", "tests/test_replay.py"),
    Defect("uploads: threads do not wait for each other", "npgait/gpu.py",
           "with self.lock:\n            return", "if True:\n            return",
           "tests/test_gpu_path.py"),
    Defect("feedback: nobody looks whether it fits", "npgait/rules/__init__.py",
           "if own != expected:", "if False:", RULES),
    Defect("series: squares of small weights underflow", "npgait/series.py",
           "least > least_norm(D.dtype)", "least > 0", SOLVER),
    Defect("an epoch ends with a loss of NaN", "npgait/training.py",
           'if not np.isfinite(row[f"{name}_loss"]):', "if False:", "tests/test_training.py"),
    Defect("a run tells before it saves", "npgait/session.py",
           "        batch_done = ", "        yield event\n        batch_done = ",
           "tests/test_cli.py tests/test_session.py"),
    Defect("store: another file of its size is read", "loaders/store/reader.py",
           "if stamp(os.fstat(descriptor)) != store.stamp:",
           "if os.fstat(descriptor).st_size != store.stamp[0]:", "tests/loaders/store/test_damage.py"),
    Defect("store: half an answer of a decoder is kept", "loaders/store/workers.py",
           "if len(data) < size:", "if False:", "tests/loaders/store/test_failing.py"),
]  # fmt: skip


def copy_project(target: Path) -> None:
    """Copy what the tests need, so that the working tree is never touched."""
    for name in ("npgait", "cli", "loaders", "tests", "setup.py", "pyproject.toml", "README.md"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(source, target / name)
    for name in ("cli", "loaders"):  # where setup.py puts them
        (target / "npgait" / name).symlink_to(target / name)
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        (target.parent / "shared").symlink_to(shared)


def build(changed: Path, project: Path) -> None:
    """Compile the loops of a copy, where a source of theirs has changed."""
    if changed.suffix in (".c", ".h"):
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
        subprocess.run(command, cwd=project, check=True, capture_output=True)


def survives(defect: Defect, project: Path) -> bool:
    """Plant a defect, run its tests, and take it out again; return whether they passed."""
    path = project / defect.file
    text = path.read_text(encoding="utf-8")
    if text.count(defect.line) != 1:
        count = text.count(defect.line)
        raise SystemExit(f"{defect.name}: its line stands {count} times in {defect.file}")
    path.write_text(text.replace(defect.line, defect.defect), encoding="utf-8")
    try:
        build(path, project)
        run = subprocess.run(
            [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
             *defect.tests.split()],
            cwd=project, capture_output=True, check=False, timeout=MAX_SECONDS,
            env={**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:  # a loop without end is seen by whoever waits for it
        return False
    finally:
        path.write_text(text, encoding="utf-8")
        build(path, project)
    if run.returncode > 1:  # below 0: a crash, which is to be caught as well
        raise SystemExit(f"{defect.name}: pytest did not run:\n{run.stdout.decode()[-2000:]}")
    return run.returncode == 0


def main() -> None:
    """Plant every defect and print what became of it."""
    words = sys.argv[1:]
    chosen = [d for d in DEFECTS if not words or any(w.lower() in d.name.lower() for w in words)]
    if not chosen:
        raise SystemExit(
            __doc__ if {"-h", "--help"} & set(words) else f"no defect has {words} in its name"
        )
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        project.mkdir()
        copy_project(project)
        build(project / "npgait/kernels/loops.c", project)
        for defect in chosen:
            alive = survives(defect, project)
            survivors += alive
            print(f"{'SURVIVES' if alive else 'caught  '}  {defect.name}  ({defect.file})", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} defects caught")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
