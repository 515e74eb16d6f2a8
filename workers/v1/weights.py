"""temporary"""
import os
import safetensors.torch as st
Weights = str | os.PathLike[str] | bytes
def load_tensors(w, config, decryption_key=None, device="cpu"):
    return st.load_file(w) if isinstance(w, (str, os.PathLike)) else st.load(bytes(w))
