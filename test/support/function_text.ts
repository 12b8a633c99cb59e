/** A FunctionProto in ONNX's textual syntax (onnx/docs/Syntax.md). */
import onnxProto from 'onnx-proto';

const { onnx } = onnxProto;

/** What is read of an AttributeProto; integers are numbers or objects of 64 bits. */
interface Attribute {
  name?: string | null;
  type?: number | null;
  refAttrName?: string | null;
  i?: unknown;
  ints?: unknown[] | null;
}

const { FLOAT, INT, STRING, TENSOR, FLOATS, INTS } = onnx.AttributeProto.AttributeType;

const TYPES = new Map<number | null | undefined, string>([
  [FLOAT, 'float'],
  [INT, 'int'],
  [STRING, 'string'],
  [TENSOR, 'tensor'],
  [FLOATS, 'floats'],
  [INTS, 'ints'],
]);

function attributeText(attribute: Attribute): string {
  const { name, type, refAttrName, i, ints } = attribute;
  if (refAttrName) return `${name}: ${TYPES.get(type)} = @${refAttrName}`;
  if (type === INT) return `${name} = ${String(i)}`;
  if (type === INTS) return `${name} = [${(ints ?? []).map(String).join(', ')}]`;
  throw new Error(`an attribute of type ${TYPES.get(type) ?? type} is not written here`);
}

/** One line a node. */
export function functionText(message: Uint8Array): string {
  const { name, domain, input, output, attribute, node, opsetImport } = onnx.FunctionProto.decode(message);
  const opsets = opsetImport.map((set) => `"${set.domain ?? ''}" : ${String(set.version)}`);
  const lines = node.map(({ opType, input: from, output: to, attribute: own }) => {
    const attributes = (own ?? []).map(attributeText).join(', ');
    return `  ${(to ?? []).join(', ')} = ${opType}${attributes ? ` <${attributes}>` : ''} (${(from ?? []).join(', ')})`;
  });
  return [
    `<domain: "${domain}", opset_import: [${opsets.join(', ')}]>`,
    `${name} <${attribute.join(', ')}>`,
    `  (${input.join(', ')}) => (${output.join(', ')})`,
    '{',
    ...lines,
    '}',
    '',
  ].join('\n');
}
