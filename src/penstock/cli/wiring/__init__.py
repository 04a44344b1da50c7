"""The one place that names every concrete class: what each kind of process is made of."""
