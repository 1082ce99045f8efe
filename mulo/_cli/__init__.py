"""The command `mulo`. `import mulo` imports nothing from here."""
