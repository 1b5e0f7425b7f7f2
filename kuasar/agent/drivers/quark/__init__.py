"""What the Quark driver is made of: the pod's kernel (one ``quark sandbox``), its Task server, what containers see."""
