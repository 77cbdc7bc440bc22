"""Working directories: writing, reading, migrating. No TensorFlow: a notebook loads `res` in a second."""
