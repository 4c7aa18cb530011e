// Package todo promises.
package todo

// TODO: some day // want `TODO without the number of an issue in brackets`
// TODO(somebody): some day // want `TODO without the number of an issue in brackets`
// TODO(#12): this one has a number.

/*
FIXME inside a block // want `FIXME without the number of an issue in brackets`
*/

// The word passes outside of comments, and so do TODOS.
const todo = "TODO"
