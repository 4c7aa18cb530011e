package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"slices"
	"strings"

	"txmesh/policies"
)

// guarded wants the token, which grants everything, or a certificate whose id an access policy grants one of the acts.
// The token is wanted on loopback too: every container of a pod shares that.
func (s *Server) guarded(next http.HandlerFunc, acts ...policies.Act) http.HandlerFunc {
	want := sha256.Sum256([]byte(s.opt.Token))
	return func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		got := sha256.Sum256([]byte(token))
		if strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(got[:], want[:]) == 1 {
			next(w, r)
			return
		}
		caller := s.opt.Caller(r)
		if caller == "" {
			s.opt.Denied(acts[0], "no_token")
			w.Header().Set("WWW-Authenticate", `Bearer realm="txmesh"`)
			write(w, problem(codeUnauthorized, "", ""))
			return
		}
		if !s.grants(caller, r, acts) {
			s.opt.Denied(acts[0], "not_authorised")
			s.opt.Log.Warn("api refused", "caller", caller, "act", acts[0].String(), "path", r.URL.Path)
			write(w, problem(codeDenied, acts[0].String()+" at "+s.opt.Service+" is not allowed to "+caller, ""))
			return
		}
		next(w, r)
	}
}

// outside lets this host in as it is, and others only with the token or a certificate: what they read tells of load and
// services.
func (s *Server) outside(next http.HandlerFunc, acts ...policies.Act) http.HandlerFunc {
	guarded := s.guarded(next, acts...)
	return func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsLoopback() {
			next(w, r)
			return
		}
		guarded(w, r)
	}
}

// grants reports whether a policy grants a caller one of the acts. Without a policy a certificate grants nothing: the
// API was never open to everybody.
func (s *Server) grants(caller string, r *http.Request, acts []policies.Act) bool {
	a := s.opt.Access()
	return a != nil && slices.ContainsFunc(acts, func(act policies.Act) bool {
		return a.Allows(act, caller, policies.Target{Service: s.opt.Service, Host: r.Host, Method: r.Method, Path: r.URL.Path})
	})
}
