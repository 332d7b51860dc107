"""The paper's other tasks on real pre-trained weights: SVFit against its peers through PEFT."""
