# Removes from /opt/coevo what no process of the image loads: `prune.sh cpu` or `prune.sh gpu`.
set -eu
cd /opt/coevo/lib/python3*/site-packages

find . -depth -type d -name tests -exec rm -rf {} +
rm -rf torch/test
if [ "$1" = gpu ]; then exit; fi

# As in the Makefile: they do not import beside CPU torch, and are imported where they are present.
unloaded="torchaudio torchcodec"
# Nothing is compiled on a CPU: not by Triton (xgrammar asks for it), not by Numba (vLLM's n-gram speculation).
unloaded="$unloaded triton numba llvmlite"
# An OpenMP beside torch's own.
unloaded="$unloaded intel-openmp intel-cmplr-lib-ur"
# vLLM's routes and tokenizers of other makers, and its own decoder of images.
unloaded="$unloaded anthropic mistral-common pycountry opencv-python-headless"
pip uninstall --quiet --yes $unloaded
rm -rf torch/include pyarrow/include
find torch/bin -type f ! -name torch_shm_manager -delete # which torch looks for when it is imported
