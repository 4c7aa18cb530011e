// Package dtmgimp is the gRPC API of DTM as generated code, under DTM's own names, which are part of the wire. It decides
// nothing; interceptor/dtm implements it. Start at dtmgimp.proto.
package dtmgimp
