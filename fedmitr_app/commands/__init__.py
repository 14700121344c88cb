"""The commands of ``fedmitr``, each of which is imported only when it is asked for."""
