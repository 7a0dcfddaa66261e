"""Ray actors: the machines of a stage (`HostActor`), and sets of machines that live and die together (`Gang`)."""
