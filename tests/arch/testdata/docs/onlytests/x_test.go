package onlytests // want `package onlytests has no doc comment: what it decides, what it never does, where to start reading`
