"""How the bundled model was made: ``python -m glimt_world.train {vae,dit,export}``; every stage resumes."""
