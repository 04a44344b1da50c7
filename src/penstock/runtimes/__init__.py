"""How engines are spoken to: one shared HTTP upstream, and per foreign engine one pure translation."""
