package todo

// XXX in a test // want `XXX without the number of an issue in brackets`
