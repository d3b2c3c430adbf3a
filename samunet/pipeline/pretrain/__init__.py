"""samunet_pretrain: a small encoder of one's own, from generated pictures, datasets or plain images."""
