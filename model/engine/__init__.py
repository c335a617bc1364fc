"""The only folder that imports deepspeed."""
