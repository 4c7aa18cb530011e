package silent // want `package silent has no doc comment: what it decides, what it never does, where to start reading`
