// Command schemas generates JSON schemas for kubeconform from the OpenAPI
// document of Kubernetes and from CustomResourceDefinitions:
// schemas VERSION OUT SWAGGER.JSON [CRD.YAML...]
//
// Each kind gets a self-contained file, OUT/vVERSION-standalone-strict/KIND-GROUP-VERSION.json,
// which is the path that kubeconform reads with -strict and -schema-location OUT.
package main

import (
	"encoding/json"
	"log"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

type object = map[string]any

// A groupVersionKind identifies the kind that a definition describes.
type groupVersionKind struct{ Group, Version, Kind string }

// fileName returns the name that kubeconform derives from an apiVersion and kind.
func (g groupVersionKind) fileName() string {
	name := []string{g.Kind}
	if group, _, _ := strings.Cut(g.Group, "."); group != "" {
		name = append(name, group)
	}
	return strings.ToLower(strings.Join(append(name, g.Version), "-")) + ".json"
}

const definitionPrefix = "#/definitions/"

func main() {
	log.SetFlags(0)
	log.SetPrefix("schemas: ")
	if len(os.Args) < 4 {
		log.Fatal("usage: schemas VERSION OUT SWAGGER.JSON [CRD.YAML...]")
	}
	out := filepath.Join(os.Args[2], "v"+os.Args[1]+"-standalone-strict")
	check(os.MkdirAll(out, 0o755))
	count := writeKubernetes(out, os.Args[3])
	for _, crd := range os.Args[4:] {
		count += writeCustom(out, crd)
	}
	log.Printf("%d kinds in %s", count, out)
}

// writeKubernetes writes the schemas of all kinds in the OpenAPI document that
// can be applied, and returns their number.
func writeKubernetes(out, swagger string) (count int) {
	var document struct{ Definitions map[string]object }
	read(swagger, &document)
	definitions := document.Definitions
	tighten(definitions)
	for name, definition := range definitions {
		kinds := kindsOf(definition)
		if len(kinds) != 1 { // for example DeleteOptions, which belongs to every group
			continue
		}
		schema := object{}
		for key, value := range definition {
			schema[key] = value
		}
		used := map[string]object{}
		collect(definition, definitions, used)
		delete(used, name)
		schema["definitions"] = used
		write(out, kinds[0], schema)
		count++
	}
	return count
}

// writeCustom writes the schemas of all versions of a CustomResourceDefinition,
// and returns their number.
func writeCustom(out, file string) (count int) {
	var crd struct {
		Spec struct {
			Group    string
			Names    struct{ Kind string }
			Versions []struct {
				Name   string
				Schema struct{ OpenAPIV3Schema object }
			}
		}
	}
	read(file, &crd)
	for _, version := range crd.Spec.Versions {
		schema := version.Schema.OpenAPIV3Schema
		if schema == nil {
			log.Fatalf("%s: version %s has no schema", file, version.Name)
		}
		closeSchema(schema)
		// A CustomResourceDefinition does not describe metadata.
		schema["properties"].(object)["metadata"] = object{"type": "object"}
		write(out, groupVersionKind{crd.Spec.Group, version.Name, crd.Spec.Names.Kind}, schema)
		count++
	}
	return count
}

// tighten makes the definitions strict, and adds the types that the API server
// accepts although the document does not mention them.
func tighten(definitions map[string]object) {
	for name, definition := range definitions {
		closeSchema(definition)
		for _, kind := range kindsOf(definition) {
			restrictKind(definition, kind)
		}
		switch {
		case strings.HasSuffix(name, ".api.resource.Quantity"):
			definitions[name] = object{"type": []string{"string", "number"}}
		case strings.HasSuffix(name, ".util.intstr.IntOrString"):
			definitions[name] = object{"type": []string{"string", "integer"}}
		case strings.HasSuffix(name, ".meta.v1.Time"): // tools print creationTimestamp: null
			definitions[name] = object{"type": []string{"string", "null"}, "format": "date-time"}
		}
	}
}

// restrictKind restricts apiVersion and kind to the values of this kind.
func restrictKind(definition object, kind groupVersionKind) {
	properties, _ := definition["properties"].(object)
	if properties == nil || properties["kind"] == nil || len(kindsOf(definition)) != 1 {
		return
	}
	apiVersion := strings.TrimPrefix(kind.Group+"/"+kind.Version, "/")
	properties["apiVersion"] = object{"type": "string", "enum": []string{apiVersion}}
	properties["kind"] = object{"type": "string", "enum": []string{kind.Kind}}
}

// closeSchema forbids unknown properties, which the API server drops silently
// or refuses, and allows null for optional properties.
func closeSchema(schema object) {
	properties, _ := schema["properties"].(object)
	if _, open := schema["additionalProperties"]; properties != nil && !open &&
		schema["x-kubernetes-preserve-unknown-fields"] != true {
		schema["additionalProperties"] = false
	}
	required := map[any]bool{}
	names, _ := schema["required"].([]any)
	for _, name := range names {
		required[name] = true
	}
	for name, value := range properties {
		property := value.(object)
		closeSchema(property)
		if kind, plain := property["type"].(string); plain && !required[name] {
			property["type"] = []string{kind, "null"}
		}
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if inner, ok := schema[key].(object); ok {
			closeSchema(inner)
		}
	}
	if schema["x-kubernetes-int-or-string"] == true {
		schema["type"] = []string{"string", "integer"}
	}
}

// collect adds the definitions that a schema refers to, recursively, to used.
func collect(value any, all, used map[string]object) {
	switch value := value.(type) {
	case object:
		if reference, ok := value["$ref"].(string); ok {
			name := strings.TrimPrefix(reference, definitionPrefix)
			if _, seen := used[name]; !seen {
				used[name] = all[name]
				collect(all[name], all, used)
			}
		}
		for _, inner := range value {
			collect(inner, all, used)
		}
	case []any:
		for _, inner := range value {
			collect(inner, all, used)
		}
	}
}

func kindsOf(definition object) (kinds []groupVersionKind) {
	text, err := json.Marshal(definition["x-kubernetes-group-version-kind"])
	check(err)
	check(json.Unmarshal(text, &kinds))
	return kinds
}

// read decodes a JSON or YAML file.
func read(file string, into any) {
	text, err := os.ReadFile(file)
	check(err)
	if err := yaml.Unmarshal(text, into); err != nil {
		log.Fatalf("%s: %v", file, err)
	}
}

func write(out string, kind groupVersionKind, schema object) {
	text, err := json.Marshal(schema)
	check(err)
	check(os.WriteFile(filepath.Join(out, kind.fileName()), text, 0o644))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
