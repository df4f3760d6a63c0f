"""What task vectors are stored as: plain tensors, compact forms, masks beside a shared vector."""
